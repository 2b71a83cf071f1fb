"""What databases do and cost: baselines of the sources of migrations."""
