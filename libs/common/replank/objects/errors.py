"""What can go wrong with the object store. Texts name the bucket, the key and the endpoint, never a credential."""

from __future__ import annotations

from replank.errors import ReplankError


class ObjectStoreError(ReplankError):
    """Base of the errors of this package, save `replank.errors.DependencyUnavailable` (dependency ``object store``)."""


class InvalidKey(ObjectStoreError):
    """A key that stores treat differently from each other, or not at all."""


class InvalidObject(ObjectStoreError):
    """A size, range, part size or metadata that the store cannot take."""


class ObjectNotFound(ObjectStoreError):
    """No object has this key (or this version)."""


class ObjectExists(ObjectStoreError):
    """A put with ``if_none_match=True`` found an object under the key. Nothing was changed."""


class ObjectChanged(ObjectStoreError):
    """The object was replaced while it was being read; what was read so far is of the old one."""


class KeyConflict(ObjectStoreError):
    """The key is a "folder" of other keys, or lies below one that is an object, in a store kept in a file system."""


class BucketMissing(ObjectStoreError):
    """The bucket does not exist."""


class AccessDenied(ObjectStoreError):
    """The store refuses these credentials, or does not let them do this."""


class ChecksumMismatch(ObjectStoreError):
    """The bytes are not those that were announced. A put that raises this has stored nothing."""


class SizeMismatch(ObjectStoreError):
    """The source had more or fewer bytes than announced. A put that raises this has stored nothing."""


class Unsupported(ObjectStoreError):
    """This store cannot do it, and pretending would lose data."""
