"""The backing servers of a stack, by name."""

from __future__ import annotations

from typing import Final

from replank_local.servers import jaeger, kafka, postgres, s3, valkey
from replank_local.unit import Unit

SERVERS: Final[dict[str, Unit]] = {
    unit.name: unit for unit in (postgres.POSTGRES, kafka.KAFKA, s3.S3, *valkey.INSTANCES, jaeger.JAEGER)
}
TEST_SERVERS: Final = ("postgres", "kafka", "s3", "valkey-authorization", "jaeger")
"""What tests are given: one Valkey is enough for them."""
