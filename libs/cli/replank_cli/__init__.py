"""The `replank` command: the local stack, events, outboxes, dead letters, flags and traces from a terminal."""
