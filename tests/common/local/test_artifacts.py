"""What is downloaded or built is made once, whole or not at all."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from pathlib import Path

import pytest

from replank.testing import eventually
from replank_local import artifacts
from replank_local.artifacts import Artifact
from replank_local.errors import StackError
from replank_local.progress import Progress

SLOW_MAKE = """
import pathlib, sys
target, made = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
with made.open("a") as log: log.write("made\\n")
target.write_text("half")
made.with_name("go on").read_text()
target.write_text("whole")
"""
FAILING_MAKE = """
import pathlib, sys
pathlib.Path(sys.argv[1]).write_text("half")
print("no such module: left-pad")
sys.exit(3)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "replank"


def artifact(cache: Path, program: str) -> Artifact:
    return Artifact(
        name="thing",
        path=cache / "bin" / "thing-1.0",
        argv=(sys.executable, "-c", program, "{target}", str(cache / "made.log")),
        cwd=cache.parent.parent,
        text="making it",
    )


@pytest.fixture
def go_on(cache: Path) -> Path:
    """A pipe: who reads it waits for who writes it."""
    cache.mkdir(parents=True)
    os.mkfifo(cache / "go on")
    return cache / "go on"


async def test_runs_that_need_it_at_the_same_time_make_it_once(cache: Path, go_on: Path) -> None:
    wanted = artifact(cache, SLOW_MAKE)
    said = io.StringIO()
    making = asyncio.gather(*(artifacts.ensure(wanted, Progress(said)) for _ in range(4)))
    await eventually(lambda: said.getvalue().count("waiting for that one") == 3, "three wait for the one that makes it")
    await asyncio.to_thread(go_on.write_text, "")
    paths = await making
    assert {path.read_text() for path in paths} == {"whole"}
    assert (cache / "made.log").read_text() == "made\n"


async def test_a_failure_leaves_nothing_that_looks_made_and_says_why(cache: Path) -> None:
    wanted = artifact(cache, FAILING_MAKE)
    with pytest.raises(StackError, match="no such module: left-pad"):
        await artifacts.ensure(wanted, Progress())
    assert not wanted.made
    assert list(wanted.path.parent.iterdir()) == []


async def test_an_interrupted_make_is_ended_and_made_anew(cache: Path, go_on: Path) -> None:
    interrupted = asyncio.create_task(artifacts.ensure(artifact(cache, SLOW_MAKE), Progress()))
    await eventually((cache / "made.log").exists, "the make has begun")
    interrupted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await interrupted
    assert not artifact(cache, SLOW_MAKE).made
    anew = asyncio.create_task(artifacts.ensure(artifact(cache, SLOW_MAKE), Progress()))
    await asyncio.to_thread(go_on.write_text, "")
    assert (await anew).read_text() == "whole"


async def test_a_missing_program_is_named(cache: Path) -> None:
    wanted = artifact(cache, "")
    absent = Artifact(name="thing", path=wanted.path, argv=("no-such-program",), cwd=wanted.cwd, text="making it")
    with pytest.raises(StackError, match="no-such-program"):
        await artifacts.ensure(absent, Progress())


def test_every_artifact_carries_its_version_in_its_name(cache: Path) -> None:
    assert artifacts.kafka_jars().path.name.startswith("kafka-4.")
    assert artifacts.versitygw().path.name.startswith("versitygw-v1.")
    assert artifacts.jaeger().path.name.startswith("jaeger-v1.")
