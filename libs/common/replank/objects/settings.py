"""Where the object store is, and how hard to lean on it."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

MIB: Final = 1024 * 1024
# S3's own limits (AWS, "Amazon S3 multipart upload limits").
MIN_PART_SIZE: Final = 5 * MIB
MAX_PART_SIZE: Final = 5 * 1024 * MIB
MAX_PARTS: Final = 10_000


class ObjectStoreSettings(BaseModel):
    """One bucket of one S3-compatible store.

    A put holds at most ``parallel_parts + 2`` parts of ``part_size`` bytes in memory, whatever the object's size; a get
    holds one chunk of ``chunk_size`` bytes. Timeouts are seconds: ``read_timeout`` is the longest silence of the store
    within a request, not the length of a request.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")]
    access_key: SecretStr
    secret_key: SecretStr
    region: str = "us-east-1"
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    part_size: Annotated[int, Field(ge=MIN_PART_SIZE, le=MAX_PART_SIZE)] = 8 * MIB
    parallel_parts: Annotated[int, Field(ge=1, le=64)] = 2
    chunk_size: Annotated[int, Field(ge=4096, le=64 * MIB)] = MIB
    connect_timeout: Annotated[float, Field(gt=0)] = 5.0
    read_timeout: Annotated[float, Field(gt=0)] = 30.0
    attempts: Annotated[int, Field(ge=1, le=20)] = 4

    @field_validator("url")
    @classmethod
    def _is_an_endpoint(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("give the store's URL as http://host:port or https://host")
        if parts.username or parts.password:
            raise ValueError("give credentials as access_key and secret_key, not in the URL")
        if parts.path not in {"", "/"} or parts.query or parts.fragment:
            raise ValueError("give the URL without a path: the bucket has a setting of its own")
        return f"{parts.scheme}://{parts.netloc}"
