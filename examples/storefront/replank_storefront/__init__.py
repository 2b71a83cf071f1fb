"""A small live shop, moving from a key-value table to tables while it sells."""
