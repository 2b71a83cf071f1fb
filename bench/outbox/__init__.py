"""The outbox relay beside its peers: how fast a backlog drains, at what cost, and how late an event arrives."""
