"""A thin door to Valkey: bytes in, bytes out, every entry with a lifetime, every call with a deadline.

A cache is never the only place where something is. When it does not answer, each call raises `DependencyUnavailable`
within its deadline, and the caller decides: go to the source of truth, or fail.
"""

from replank.cache.client import Cache

__all__ = ["Cache"]
