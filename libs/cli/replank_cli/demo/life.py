"""A migration as its owner handles it: asked to go on as soon as it may, and waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from replank.errors import ReplankError
from replank_cli.asking import Refused
from replank_cli.demo.calls import until
from replank_cli.migrate import show
from replank_cli.migrate.service import Schema
from replank_cli.migrate.views import AT_REST, AuditLine, Comparison, Migration, Reject

_REASON: Final = "the demo"
_REFUSED: Final = "transition-refused"
_MOST_KEYS: Final = 1000
_ALL: Final = 1_000_000


class Life:
    """One registered migration. Raises `Refused` for what is refused, `ReplankError` for what takes too long."""

    def __init__(self, schema: Schema, migration_id: str, name: str) -> None:
        self._schema = schema
        self.id = migration_id
        self.name = name

    async def view(self) -> Migration:
        """Everything about it, now."""
        return await asyncio.to_thread(self._schema.migration, self.id)

    async def when(self, satisfied: Callable[[Migration], object], *, what: str, within: float) -> Migration:
        """How it stands, once that satisfies."""
        return await until(self.view, satisfied, what=what, within=within, so_far=show.one_line)

    async def ask(self, command: str, **body: Any) -> Migration:
        """Ask for something."""
        answer = await asyncio.to_thread(self._schema.post, f"/{self.id}/{command}", {"reason": _REASON, **body})
        return Migration.model_validate(answer)

    async def reads(self, mode: str, rollout: float) -> None:
        """Let all endpoints be answered so, for so many per cent of the keys."""
        body = {"mode": mode, "rollout": rollout, "reason": _REASON}
        for route in (await self.view()).reads:
            await asyncio.to_thread(self._schema.put, f"/{self.id}/reads/{route.endpoint}", body)

    async def start(self, *, within: float) -> Migration:
        """From planned, or rolled back, to capturing."""
        return await self._go("start", "capturing", within)

    async def advance(self, to: str, *, within: float, rollout: float = 100.0) -> Migration:
        """To the next phase, as soon as its conditions are met."""
        return await self._go("advance", to, within, rollout=rollout)

    async def roll_back(self, *, within: float) -> Migration:
        """All the way, and drop the tables; if it is on its way there already, only wait."""
        if (await self.view()).moving_to not in AT_REST:
            await self.ask("rollback", tables="drop")
        return await self.when(lambda seen: seen.phase in AT_REST, what=f"{self.name} to be taken back", within=within)

    async def written(self, side: str, *, within: float) -> None:
        """Return once a database itself has said that it is the one that takes writes: ``source`` or ``target``."""
        await self.when(
            lambda seen: seen.authority is not None and getattr(seen.authority, side) == "open",
            what=f"the {side} of {self.name} to be open for writes",
            within=within,
        )

    async def compared(self, *, within: float) -> Comparison:
        """The newest comparison of everything, at its end."""

        async def look() -> Comparison:
            (run,) = await asyncio.to_thread(self._schema.pages, f"/{self.id}/comparisons", limit=1)
            return Comparison.model_validate(run)

        return await until(
            look,
            lambda found: found.state not in {"asked", "running"},
            what="everything to be compared",
            within=within,
            so_far=lambda found: f"{found.compared} of about {found.records_estimated} records are",
        )

    async def rejects(self) -> list[Reject]:
        """The records that could not be converted."""
        items = await asyncio.to_thread(self._schema.pages, f"/{self.id}/rejects", limit=_ALL)
        return [Reject.model_validate(item) for item in items]

    async def accept(self, keys: list[str], reason: str) -> int:
        """Accept by name that these records are not in the tables; how many were accepted now."""
        accepted = 0
        for first in range(0, len(keys), _MOST_KEYS):
            body = {"keys": keys[first : first + _MOST_KEYS], "reason": reason}
            answer = await asyncio.to_thread(self._schema.post, f"/{self.id}/rejects/accept", body)
            accepted += answer["accepted"]
        return accepted

    async def last(self, action: str) -> AuditLine:
        """The newest line of the audit of this action."""
        lines = await asyncio.to_thread(self._schema.pages, f"/{self.id}/audit", limit=_MOST_KEYS)
        for line in map(AuditLine.model_validate, lines):
            if line.action == action:
                return line
        raise ReplankError(f"the audit of {self.name} has no {action}")

    async def _go(self, command: str, to: str, within: float, **body: Any) -> Migration:
        deadline = time.monotonic() + within
        while True:
            seen = await self.when(
                lambda seen: seen.next is not None and seen.next.to == to and seen.next.allowed,
                what=f"{self.name} to be allowed to go on to {to}",
                within=max(deadline - time.monotonic(), 0.0),
            )
            try:
                seen = await self.ask(command, expected=seen.phase, **body)
            except Refused as refused:
                # What it is judged by may change between the look and the asking.
                if refused.slug != _REFUSED or time.monotonic() > deadline:
                    raise
                continue
            seen = await self.when(
                lambda seen: seen.moving_to is None, what=f"{self.name} to arrive in {to}", within=within
            )
            if seen.phase == to:
                return seen
            if time.monotonic() > deadline:
                reason = (await self.last("give_up")).reason
                raise ReplankError(f"{self.name} did not get to {to}: {reason}", fix="`make logs S=schema` tells more")
