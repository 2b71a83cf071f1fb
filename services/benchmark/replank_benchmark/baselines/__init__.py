"""Baselines: what a migration's source looks like, and costs to read, before anything changes."""
