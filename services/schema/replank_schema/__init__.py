"""Migration plans, and whether everything is there that must be before a migration may start."""
