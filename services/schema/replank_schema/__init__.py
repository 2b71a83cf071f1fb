"""Migrations from a live key-value table to tables, and back: planned, run, watched."""
