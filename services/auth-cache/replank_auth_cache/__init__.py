"""Who relates how to what: relation tuples, checked in OpenFGA's shapes, kept in Postgres and cached in Valkey."""
