"""Rows that the schema service gives away: fetched, kept, read back, and only then said to be archived."""
