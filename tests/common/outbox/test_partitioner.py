"""The partition of a key is the one that every other Kafka producer computes."""

from __future__ import annotations

from aiokafka.partitioner import murmur2
from hypothesis import given
from hypothesis import strategies as st

from replank.outbox.partitioner import partition_hash


@given(st.binary(max_size=200))
def test_it_is_kafkas_murmur2(key: bytes) -> None:
    assert partition_hash(key) == murmur2(key) & 0x7FFFFFFF
