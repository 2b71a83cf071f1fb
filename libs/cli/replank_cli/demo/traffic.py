"""The shop's live traffic: processes that work in shifts, and know the right answer to all that they ask."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from replank.errors import ReplankError
from replank_cli.demo.calls import until
from replank_cli.demo.places import Places

SHOP: Final = "replank_storefront"
_WORKERS: Final = 4
_PRODUCTS: Final = 8
_FURNITURE: Final = 4
"""What else a worker makes before anything can be sold: a client, a catalog, two sites."""
_LARGEST: Final = 5000
_LIVE: Final = 0.25
_ENDS_WITHIN: Final = 30.0
_FURNISHED_WITHIN: Final = 30.0
_SHOWN: Final = 5


@dataclass(slots=True)
class Shift:
    """One run of the driver. ``live`` is what it said last of its numbers, ``summary`` what it said in the end."""

    name: str
    process: asyncio.subprocess.Process
    model: Path
    """Where it writes what is true at its end."""
    log: Path
    live: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    listening: asyncio.Task[None] | None = None

    @property
    def requests(self) -> int:
        """How many requests were answered so far."""
        return int((self.summary or self.live).get("requests", 0))


class Traffic:
    """The shifts. A new one begins before the last one ends: the shop never stands still.

    As a context manager it leaves no process behind.
    """

    def __init__(self, places: Places, folder: Path, *, rate: float) -> None:
        self._places = places
        self._folder = folder
        self._rate = rate
        self._token = folder / "token"
        self.shifts: list[Shift] = []

    async def __aenter__(self) -> Traffic:
        self._token.touch(mode=0o600)
        self._token.write_text(self._places.token)
        return self

    async def __aexit__(self, *_: object) -> None:
        for shift in self.shifts:
            if shift.process.returncode is None:
                shift.process.kill()
                await shift.process.wait()
            if shift.listening is not None:
                shift.listening.cancel()

    async def begin(self, name: str, *, alone: bool = False) -> Shift:
        """Send a shift to work, and return once it does more than furnish its corner of the shop.

        One that works ``alone`` has one worker, who asks again as soon as there is an answer: what that takes is the
        shop's own time. The others come at the rate that was asked for, whatever answers take.
        """
        workers, pace = (1, ()) if alone else (_WORKERS, ("--rate", f"{self._rate:g}"))
        number = len(self.shifts) + 1
        log, model = self._folder / f"{name}.log", self._folder / f"{name}.json"
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", SHOP, "drive", "--url", self._places.shop, "--token-file", str(self._token)),
                *("--workers", str(workers), "--products", str(_PRODUCTS), *pace),
                *("--seed", str(number), "--live", f"{_LIVE:g}", "--model", str(model)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
        shift = Shift(name, process, model, log)
        shift.listening = asyncio.create_task(_listen(shift))
        self.shifts.append(shift)
        await self.reaches(shift, workers * (_PRODUCTS + _FURNITURE) + 1, within=_FURNISHED_WITHIN)
        return shift

    async def reaches(self, shift: Shift, requests: int, *, within: float) -> None:
        """Return once a shift has so many answers. Raises `ReplankError` when it dies first."""

        async def look() -> int:
            if shift.process.returncode is not None:
                raise _broken(shift)
            return shift.requests

        await until(
            look,
            lambda answered: answered >= requests,
            what=f"{requests} answers to the live traffic",
            within=within,
            so_far=lambda answered: f"there are {answered}",
        )

    async def end(self, shift: Shift) -> None:
        """Let a shift finish the requests that are under way, and say how it went. Raises `ReplankError`."""
        with suppress(ProcessLookupError):
            shift.process.terminate()
        try:
            async with asyncio.timeout(_ENDS_WITHIN):
                await shift.process.wait()
                if shift.listening is not None:
                    await shift.listening
        except TimeoutError:
            raise ReplankError(
                f"the live traffic ({shift.name}) did not end within {_ENDS_WITHIN:g} s", fix="`make logs S=storefront`"
            ) from None
        if not shift.summary:
            raise _broken(shift)

    @property
    def ended(self) -> list[Shift]:
        """The shifts that have said how it went."""
        return [shift for shift in self.shifts if shift.summary]

    def total(self, count: str) -> int:
        """The sum of a count over all shifts, so far."""
        return sum(int((shift.summary or shift.live).get(count, 0)) for shift in self.shifts)

    def pulse(self) -> str:
        """How it goes, in a line."""
        return (
            f"live traffic: {self.total('requests'):,} requests, {self.total('failures')} failed, "
            f"{self.total('wrong')} wrong answers"
        )

    def first_faults(self) -> list[str]:
        """The first failures and wrong answers, a line each."""
        faults = [fault for shift in self.shifts for fault in shift.summary.get("first", ())]
        return [json.dumps(fault, ensure_ascii=False)[:300] for fault in faults[:_SHOWN]]

    async def audit(self, store: str, shifts: list[Shift]) -> tuple[int, int]:
        """Hold a store itself to what ended shifts know to be true: how many answers were compared, how many wrong."""
        models = [option for shift in shifts for option in ("--model", str(shift.model))]
        _, answer = await _run("audit", "--store", store, *models, places=self._places)
        try:
            found: dict[str, Any] = json.loads(answer)
        except ValueError:
            raise ReplankError(f"the audit of {store} failed: {answer}") from None
        return found["compared"], found["wrong"]


async def seed(places: Places, records: int, planted: Path) -> dict[str, Any]:
    """Fill the empty shop; ``planted`` becomes a file with the keys of the dirty records."""
    # The key-value store reads them one by one for a report: enough to see that, and not to wait for it for long.
    largest = str(min(_LARGEST, records // 10))
    sizes = ("--records", str(records), "--largest-client-orders", largest)
    code, answer = await _run("seed", *sizes, "--planted", str(planted), places=places)
    if code != 0:
        raise ReplankError(f"the shop could not be filled: {answer}")
    return dict(json.loads(answer))


async def _run(*arguments: str, places: Places) -> tuple[int, str]:
    """A command of the shop's: its exit status, and its last line."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", SHOP, *arguments),
        env={
            **os.environ,
            "REPLANK_STOREFRONT_DSN": places.kv_dsn,
            "REPLANK_STOREFRONT_TABLES_DSN": places.tables_dsn,
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    lines = out.decode().strip().splitlines()
    return process.returncode or 0, lines[-1] if lines else ""


async def _listen(shift: Shift) -> None:
    """Take down what a shift says, a JSON object a line, until it ends."""
    if shift.process.stdout is None:
        return
    async for line in shift.process.stdout:
        said = json.loads(line)
        if "live" in said:
            shift.live = said["live"]
        else:
            shift.summary = said


def _broken(shift: Shift) -> ReplankError:
    end = " | ".join(shift.log.read_text().strip().splitlines()[-3:])
    return ReplankError(f"the live traffic ({shift.name}) broke off with status {shift.process.returncode}: {end}")
