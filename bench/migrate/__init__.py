"""A migration's costs and gains: backfill, capture, dual write, flags, and the same questions to both stores."""
