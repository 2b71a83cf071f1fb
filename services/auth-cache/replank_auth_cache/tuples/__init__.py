"""Relation tuples: who relates how to what, kept in Postgres, answered through a cache."""
