"""What is kept in object storage, with the proof that it is there: the plans of migrations."""
