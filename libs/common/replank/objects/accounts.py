"""Accounts of versitygw, the object store of the local stack and of tests, through its admin API.

An account of the role ``user`` reaches the bucket that it owns and nothing else: it makes no bucket and sees no other
in a listing. ``python -m replank.objects.accounts`` makes the accounts that the environment names, for a container that
runs once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from xml.etree import ElementTree as ET

from replank.errors import ConfigurationError, ReplankError
from replank.objects.errors import ObjectStoreError
from replank.objects.signed import Answer, SignedRequests

_VARIABLES: Final = ("S3_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_ACCOUNTS")


@dataclass(frozen=True, slots=True)
class Account:
    """One account, and the bucket that is its own."""

    access_key: str
    secret_key: str = field(repr=False)
    bucket: str


def ensure_accounts(url: str, access_key: str, secret_key: str, accounts: Iterable[Account]) -> None:
    """Make accounts and their buckets, as the store's administrator; blocks. May be repeated.

    An account that is there gets this secret and the role ``user``; a bucket that is somebody else's becomes the
    account's, with neither policy nor grants. Objects stay. Raises `ObjectStoreError`, `DependencyUnavailable`.
    """
    with SignedRequests(url, access_key, secret_key) as store:
        for account in accounts:
            _ensure_account(store, account)
            _ensure_bucket(store, account)


def remove_accounts(url: str, access_key: str, secret_key: str, access_keys: Iterable[str]) -> None:
    """Remove accounts, as the store's administrator; blocks. Their buckets stay; one that is gone is no error."""
    with SignedRequests(url, access_key, secret_key) as store:
        for removed in access_keys:
            _done(store, "/delete-user", store.send("PATCH", "/delete-user", query={"access": removed}))


def _ensure_account(store: SignedRequests, account: Account) -> None:
    properties = {"Secret": account.secret_key, "Role": "user"}
    body = _xml("Account", {"Access": account.access_key, **properties})
    if not _done(store, "/create-user", store.send("PATCH", "/create-user", body=body), but="XAdminUserExists"):
        answer = store.send(
            "PATCH", "/update-user", query={"access": account.access_key}, body=_xml("MutableProps", properties)
        )
        _done(store, "/update-user", answer)


def _ensure_bucket(store: SignedRequests, account: Account) -> None:
    path = f"/{account.bucket}/create"
    answer = store.send("PATCH", path, headers={"x-vgw-owner": account.access_key})
    if answer.code == "BucketAlreadyOwnedByYou":
        return
    if not _done(store, path, answer, but="BucketAlreadyExists"):
        query = {"bucket": account.bucket, "owner": account.access_key}
        _done(store, "/change-bucket-owner", store.send("PATCH", "/change-bucket-owner", query=query))


def _done(store: SignedRequests, path: str, answer: Answer, *, but: str | None = None) -> bool:
    """Whether the store did it; False when it refused with the code ``but``."""
    if answer.code == but:
        return False
    if answer.code:
        raise ObjectStoreError(
            f"the object store {store.url} refused {path}: {answer.code}",
            fix="it must be versitygw with accounts of its own (--iam-dir), and the credentials its administrator's",
        )
    return True


def _xml(name: str, properties: Mapping[str, str]) -> bytes:
    root = ET.Element(name)
    for element, text in properties.items():
        ET.SubElement(root, element).text = text
    return ET.tostring(root)


def from_environment(environment: Mapping[str, str]) -> tuple[str, str, str, list[Account]]:
    """What `ensure_accounts` is called with. Raises `ConfigurationError`."""
    missing = [name for name in _VARIABLES if not environment.get(name)]
    if missing:
        raise ConfigurationError(f"not set: {', '.join(missing)}", fix="set these environment variables")
    url, access_key, secret_key, accounts = (environment[name] for name in _VARIABLES)
    try:
        return url, access_key, secret_key, [Account(**account) for account in json.loads(accounts)]
    except (ValueError, TypeError):
        raise ConfigurationError(
            "S3_ACCOUNTS cannot be read", fix='give [{"access_key": …, "secret_key": …, "bucket": …}]'
        ) from None


if __name__ == "__main__":
    try:
        ensure_accounts(*from_environment(os.environ))
    except ReplankError as error:
        sys.exit(str(error))
