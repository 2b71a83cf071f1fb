"""Object storage: `ObjectStore` over any S3-compatible store, streaming in constant memory. Extra ``objects``."""

from replank.objects.body import ObjectBody
from replank.objects.errors import (
    AccessDenied,
    BucketMissing,
    ChecksumMismatch,
    InvalidKey,
    InvalidObject,
    KeyConflict,
    ObjectChanged,
    ObjectExists,
    ObjectNotFound,
    ObjectStoreError,
    SizeMismatch,
    Unsupported,
)
from replank.objects.model import Capabilities, ObjectInfo
from replank.objects.settings import ObjectStoreSettings
from replank.objects.store import ObjectStore

__all__ = [
    "AccessDenied",
    "BucketMissing",
    "Capabilities",
    "ChecksumMismatch",
    "InvalidKey",
    "InvalidObject",
    "KeyConflict",
    "ObjectBody",
    "ObjectChanged",
    "ObjectExists",
    "ObjectInfo",
    "ObjectNotFound",
    "ObjectStore",
    "ObjectStoreError",
    "ObjectStoreSettings",
    "SizeMismatch",
    "Unsupported",
]
