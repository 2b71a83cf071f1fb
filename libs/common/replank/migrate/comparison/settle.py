"""Telling a difference from a change that is on its way.

The two databases cannot be read at one moment, and the one that follows is a little behind. So a difference counts only
if two successive looks agree on everything: the record, the newest captured change, the newest applied one, and the
verdict. Why that is enough, for a key whose following side applied version A in both looks:

- Looks alternate: store, tables, store, tables. Versions grow with commits, and every applied one leaves its number
  with the rows in one transaction. So the following side did not change between its two readings.
- Between these two lies a reading of the leading side. Version A was committed there before the first of the two, as it
  was applied then; and nothing newer than A is captured in that reading, or the key would be in flight.
- So at that reading both sides stood at version A, and they differed.

A key that does not come to rest within ``patience`` is unsettled: it is neither equal nor different.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from replank.migrate.comparison.model import ComparisonSettings, Findings, Kind, Mismatch
from replank.migrate.comparison.sides import Look, Sides

_LONGEST_PAUSE: Final = 1.0
#: How many earlier versions of a record are tried before its rows are called different and not stale.
_EARLIER: Final = 20
_NO_ENTITY: Final = ""


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of the keys that were looked at: ``equal``, ``different`` with the agreed look, ``unsettled``."""

    equal: frozenset[str]
    different: Mapping[str, Look]
    unsettled: frozenset[str]


async def settle(sides: Sides, keys: Iterable[str], settings: ComparisonSettings) -> Settled:
    """Look at keys until each of them is equal or certainly different, or patience runs out."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + settings.patience
    open_ = set(keys)
    equal: set[str] = set()
    different: dict[str, Look] = {}
    before: Mapping[str, Look] = {}
    pause = settings.pause
    for attempt in range(settings.rounds):
        if attempt:
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        looks = await sides.look(sorted(open_), in_flight=settings.in_flight)
        for key, look in looks.items():
            if not look.different:
                equal.add(key)
            elif before.get(key) == look and not look.in_flight:
                different[key] = look
        open_ -= equal
        open_ -= different.keys()
        if not open_ or (attempt and loop.time() >= deadline):
            break
        before = looks
    return Settled(frozenset(equal), different, frozenset(open_))


async def check(sides: Sides, keys: Iterable[str], settings: ComparisonSettings) -> Findings:
    """Compare single keys now, and say what is wrong with those that certainly differ."""
    settled = await settle(sides, keys, settings)
    mismatches = await describe(sides, settled.different)
    return Findings(mismatches, sorted(settled.equal), sorted(settled.unsettled))


async def describe(sides: Sides, different: Mapping[str, Look]) -> list[Mismatch]:
    """Say what is wrong with keys that are certainly different: the kind, the fields, whose write it was."""
    keys = sorted(different)
    if not keys:
        return []
    present = {key: value for key in keys if (value := different[key].value) is not None}
    with_root = await sides.with_root(keys)
    rejected = await sides.rejected(keys)
    writers = await sides.writers(keys)
    fields = await sides.fields(list(present), list(present.values()))
    stale = await _stale(sides, [key for key in present if key in with_root])

    def kind(key: str) -> Kind:
        if key not in present:
            return Kind.EXTRA
        if key not in with_root:
            return Kind.REJECTED if key in rejected else Kind.MISSING
        return Kind.STALE if key in stale else Kind.DIFFERENT

    return [
        Mismatch(key, sides.mapping.entity_of(key) or _NO_ENTITY, kind(key), fields.get(key, ()), writers.get(key))
        for key in keys
    ]


async def _stale(sides: Sides, keys: list[str]) -> set[str]:
    """Those of the keys whose rows are what an earlier version of the record converts to."""
    found: set[str] = set()
    earlier = await sides.earlier(keys, each=_EARLIER) if keys else {}
    for age in range(max(map(len, earlier.values()), default=0)):
        asked = [key for key, values in earlier.items() if len(values) > age and key not in found]
        answer = await sides.compare(asked, [earlier[key][age] for key in asked])
        found.update(key for key in asked if key not in answer.different)
    return found
