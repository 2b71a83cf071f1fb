"""A Kafka of the local stack can always be formatted."""

from __future__ import annotations

import uuid

from replank_local.servers.kafka import cluster_id


def test_a_cluster_id_is_never_taken_for_an_option() -> None:
    begins_with_a_dash = uuid.UUID(bytes=b"\xf8" + bytes(15))
    assert cluster_id(begins_with_a_dash) == "A" + "A" * 21
    other = uuid.UUID(bytes=bytes(range(16)))
    assert cluster_id(other) == "AAECAwQFBgcICQoLDA0ODw"
