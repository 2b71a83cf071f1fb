"""Is the service alive (``/healthz``), and can it do its work (``/readyz``)?"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from opentelemetry.instrumentation.utils import suppress_instrumentation

from replank.errors import ReplankError

_log = logging.getLogger(__name__)

Check: TypeAlias = Callable[[], Awaitable[object]]
"""Asks one dependency for an answer. Raising means "not ready"; the error's text is the reason."""

# Anybody may ask, and each question asks every dependency: answers this young (seconds) are given again.
_FRESH: Final = 0.5


@dataclass(frozen=True)
class Health:
    """One dependency at one moment. ``reason`` is empty when it is ready."""

    ready: bool
    required: bool
    seconds: float
    reason: str = ""


class Readiness:
    """The dependencies of a service by name. All are asked at once, each with its own time limit (seconds)."""

    def __init__(self, *, within: float = 2.0) -> None:
        self._within = within
        self._checks: dict[str, tuple[Check, bool]] = {}
        self._asking = asyncio.Lock()
        self._last: tuple[float, dict[str, Health]] | None = None

    def add(self, name: str, check: Check, *, required: bool = True) -> None:
        """Add a dependency. One that is not ``required`` is reported, and does not make the service unready."""
        self._checks[name] = (check, required)

    async def ask(self) -> dict[str, Health]:
        """Every dependency by name. Never raises, and is over after the time limit."""
        async with self._asking:
            if self._last is not None and time.monotonic() - self._last[0] < _FRESH:
                return self._last[1]
            # Probes come every few seconds for ever: their queries are not worth a trace each.
            with suppress_instrumentation():
                answers = await asyncio.gather(*(self._ask(name) for name in self._checks))
            healths = dict(zip(self._checks, answers, strict=True))
            self._last = (time.monotonic(), healths)
            return healths

    async def _ask(self, name: str) -> Health:
        check, required = self._checks[name]
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._within):
                await check()
        except TimeoutError:
            reason = f"no answer within {self._within:g} s"
        except ReplankError as error:
            reason = str(error)
        except Exception as error:
            _log.exception("the readiness check of %s failed in an unexpected way", name)
            reason = f"{type(error).__name__}: {error}"
        else:
            return Health(ready=True, required=required, seconds=time.monotonic() - started)
        return Health(ready=False, required=required, seconds=time.monotonic() - started, reason=reason)


def as_json(healths: dict[str, Health]) -> dict[str, Any]:
    """Dependencies as members of a JSON document; times in milliseconds."""
    return {
        name: {
            "ready": health.ready,
            "required": health.required,
            "took_ms": round(health.seconds * 1000, 1),
            **({"reason": health.reason} if health.reason else {}),
        }
        for name, health in healths.items()
    }
