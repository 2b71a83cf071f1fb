"""Comparing a few keys again and again, while writes go on.

A sample has three parts, each for what the others seldom meet:

- Random records, by ``tablesample system``: pages are drawn at random, then records of them. Every record is as likely
  as any other, but records of one page, mostly written at one time, come together. A sample of n reads about n pages,
  so few of its records are neighbours.
- The keys of the newest captured changes, deleted ones among them. What goes wrong while writing goes wrong there: they
  are over-represented on purpose, so the consistency of samples is, if anything, too low.
- Root rows that come first, or after random keys, in the order of the primary key, to find rows without a record. A row
  is the more likely to be met the fewer sampled keys lie around it: the gaps of the key space decide, which is no
  uniform choice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from replank.connection import POSTGRES_ERRORS
from replank.migrate.comparison.model import ComparisonSettings, Findings
from replank.migrate.comparison.settle import check
from replank.migrate.comparison.sides import Sides, opened
from replank.migrate.mapping import Mapping
from replank.migrate.session import backoff
from replank.migrate.topics import Direction

_log = logging.getLogger(__name__)

_PROBES: Final = 8
_ROWS_A_PROBE: Final = 10
_LONGEST_PAUSE: Final = 30.0


async def sample(sides: Sides, wanted: int, settings: ComparisonSettings) -> Findings:
    """Compare about ``wanted`` keys: half of them random records, half of them changed lately, and some rows."""
    drawn = await sides.random_keys(-(-wanted // 2))
    keys = {*drawn, *await sides.recent_keys(wanted // 2)}
    keys.update(await _rows_without_record(sides, drawn[:_PROBES]))
    return await check(sides, keys, settings)


async def _rows_without_record(sides: Sides, near: Sequence[str]) -> list[str]:
    places: list[tuple[str, str | None]] = [(entity, None) for entity in sides.mapping.entities]
    places += [(entity, key) for key in near if (entity := sides.mapping.entity_of(key)) is not None]
    extra: list[str] = []
    for entity, after in places:
        extra += await sides.without_record(await sides.roots(entity, after, _ROWS_A_PROBE))
    return extra


class Sampler:
    """Takes a sample every ``every`` seconds for as long as it runs, and gives what it found to ``report``.

    A server that is away is waited for; ``problem`` says so meanwhile, and is empty while all is well.
    """

    def __init__(
        self,
        source: str,
        target: str,
        mapping: Mapping,
        *,
        report: Callable[[Findings], Awaitable[None]],
        direction: Direction = "forward",
        settings: Callable[[], ComparisonSettings] = ComparisonSettings,
        keys: int = 100,
        every: float = 10.0,
    ) -> None:
        self._source = source
        self._target = target
        self._mapping = mapping
        self._report = report
        self._direction = direction
        self._settings = settings
        self._keys = keys
        self._every = every
        self.problem = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Sample until ``stop`` is set."""
        failures = 0
        while not stop.is_set():
            try:
                async with opened(self._source, self._target, self._mapping, self._direction) as sides:
                    while not stop.is_set():
                        taken = await sample(sides, self._keys, self._settings())
                        self.problem, failures = "", 0
                        await self._report(taken)
                        await _elapsed(self._every, stop)
            except POSTGRES_ERRORS as error:
                self.problem = f"cannot sample: {str(error) or type(error).__name__}"
                _log.warning("%s", self.problem, extra={"migration": self._mapping.name})
                await _elapsed(backoff(failures, _LONGEST_PAUSE), stop)
                failures += 1


async def _elapsed(seconds: float, stop: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
