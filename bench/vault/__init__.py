"""The vault, whose rows know of contents in object storage, against whole contents in rows."""
