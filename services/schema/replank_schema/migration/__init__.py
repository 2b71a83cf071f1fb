"""Migrations: planned, started, watched, moved from phase to phase, and taken back."""
