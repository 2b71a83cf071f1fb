"""Uploads of schemas with so many fields, to the vault and into rows, one after the other on one connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

import httpx

from bench.vault.samples import of_fields
from bench.vault.stand import Door
from bench.vault.turns import Side, in_turns
from bench.waits import Waits

SIZES: Final = (10, 50, 200)


@dataclass(frozen=True, slots=True)
class Uploaded:
    """How long an upload of ``fields`` fields took, from the request to the answer that it is published."""

    fields: int
    new: Waits
    old: Waits


async def upload(new: Door, old: Door, fields: int, *, turns: int) -> Uploaded:
    """Upload to both in turns; every content is new to them."""
    waits = await in_turns(*(Side(_uploading(door, fields)) for door in (new, old)), turns=turns)
    return Uploaded(fields, *waits)


def _uploading(door: Door, fields: int) -> Callable[[int], Awaitable[httpx.Response]]:
    run = uuid4()

    async def send(number: int) -> httpx.Response:
        return await door.upload(f"upload/{run}/{number + 10_000}", of_fields(fields, f"{run} {number}"))

    return send
