"""A process of a test says what it wrote, and never outlives the test."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from replank.testing.processes import Process

PROGRAMS = str(Path(__file__).with_name("programs"))


def talker(*args: str) -> Process:
    return Process("talker", *args, cwd=PROGRAMS)


async def test_a_line_is_waited_for_and_both_streams_are_kept() -> None:
    async with talker("and", "willing") as process:
        assert await process.line_with("ready") == "ready and willing"
        await process.line_with("complaint")
        assert process.output == "ready and willing\na complaint"


async def test_a_killed_process_runs_nothing_any_more() -> None:
    async with talker() as process:
        await process.line_with("ready")
        process.kill()
        assert await process.exit_code() == -signal.SIGKILL
    assert "told to end" not in process.output


async def test_a_terminated_process_ends_by_itself() -> None:
    async with talker() as process:
        await process.line_with("ready")
        process.terminate()
        assert await process.exit_code() == 3
    assert process.output.endswith("told to end")


async def test_a_process_is_gone_when_the_test_fails() -> None:
    process = talker()

    async def fail() -> None:
        async with process:
            await process.line_with("ready")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


async def test_a_line_that_never_comes_is_reported_with_the_output() -> None:
    async with talker() as process:
        with pytest.raises(AssertionError, match=r"no line with 'missing'(.|\n)*a complaint"):
            await process.line_with("missing", within=1.0)
    async with talker("crash") as process:
        with pytest.raises(AssertionError, match="the process ended without a line"):
            await process.line_with("missing")
        assert await process.exit_code() == 4


async def test_a_frozen_process_goes_on_when_thawed() -> None:
    async with talker() as process:
        await process.line_with("ready")
        process.freeze()
        process.terminate()
        with pytest.raises(AssertionError, match="did not end"):
            await process.exit_code(within=0.2)
        process.thaw()
        assert await process.exit_code() == 3
