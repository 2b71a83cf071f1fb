"""Moving a live key-value store to tables, and back.

`replank.migrate.mapping` says what becomes of which record, `replank.migrate.compile` turns that into SQL. An
application needs `replank.migrate.client` only.
"""
