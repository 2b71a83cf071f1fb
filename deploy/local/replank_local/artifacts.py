"""What is downloaded or built once per version and kept in the user's cache: Kafka's jars, versitygw, Jaeger.

An artifact is made under another name and renamed when it is whole, under a lock file: runs that need it at the same
time make it once, and one that is killed leaves nothing that looks finished.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Final

from replank_local import processes
from replank_local.errors import StackError
from replank_local.locks import locked
from replank_local.places import DEPLOY, cache_folder
from replank_local.progress import Progress

_TARGET: Final = "{target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One thing in the cache, and the command that makes it."""

    name: str
    path: Path
    """Where it is once it is made; the version is part of the name."""
    argv: tuple[str, ...]
    """The command; ``{target}`` stands for the path to write."""
    cwd: Path
    text: str
    """What the command does, for the progress line."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def made(self) -> bool:
        return self.path.exists()

    @property
    def log(self) -> Path:
        return cache_folder() / "logs" / f"{self.path.name}.log"


def kafka_jars() -> Artifact:
    """The jars of the Kafka version in `kafka/pom.xml`; a changed pom makes another folder."""
    folder = DEPLOY / "local" / "kafka"
    pom = (folder / "pom.xml").read_bytes()
    digest = hashlib.sha256(pom).hexdigest()[:8]
    version = _first(r"<kafka\.version>([^<]+)<", pom.decode(), folder / "pom.xml")
    return Artifact(
        name="kafka",
        path=cache_folder() / f"kafka-{version}-{digest}",
        argv=(
            *("mvn", "--batch-mode", "--no-transfer-progress", "--strict-checksums", "--file", str(folder / "pom.xml")),
            *("dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={_TARGET}"),
        ),
        cwd=cache_folder(),
        text=f"downloading the jars of Kafka {version} with Maven",
    )


def versitygw() -> Artifact:
    """The object store."""
    return _go_tool("versitygw", "github.com/versity/versitygw", "cmd/versitygw", "takes about 1.5 minutes")


def jaeger() -> Artifact:
    """The trace store. Its build takes all cores for minutes, so it goes behind everything else."""
    return _go_tool("jaeger", "github.com/jaegertracing/jaeger", "cmd/jaeger", "takes about 7 minutes", niceness=15)


def _go_tool(name: str, module: str, command: str, duration: str, *, niceness: int = 0) -> Artifact:
    folder = DEPLOY / "local" / name
    version = _first(rf"{re.escape(module)} (v\S+)", (folder / "go.mod").read_text(), folder / "go.mod")
    nice = ("nice", "-n", str(niceness)) if niceness else ()
    return Artifact(
        name=name,
        path=cache_folder() / "bin" / f"{name}-{version}",
        argv=(
            *(*nice, "go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w"),
            *("-o", _TARGET, f"{module}/{command}"),
        ),
        cwd=folder,
        text=f"building {name} {version} with Go ({duration}, once per version)",
        # An older Go fetches the toolchain that go.mod names, unless a newer one is there already.
        environment={"CGO_ENABLED": "0", **go_toolchain(folder / "go.mod")},
    )


def go_toolchain(go_mod: Path) -> dict[str, str]:
    """GOTOOLCHAIN=auto where the installed Go is older than this module asks for (packagers may have set ``local``)."""
    wanted = _first(r"^go (\d+\.\d+)", go_mod.read_text(), go_mod)
    installed = go_version()
    if installed is None or installed >= _numbers(wanted):
        return {}
    return {"GOTOOLCHAIN": "auto"}


def go_version() -> tuple[int, ...] | None:
    """The version of the installed Go as (major, minor); None without Go."""
    if shutil.which("go") is None:
        return None
    answer = subprocess.run(
        ["go", "version"], capture_output=True, text=True, check=False, env={**os.environ, "GOTOOLCHAIN": "local"}
    ).stdout
    found = re.search(r"go(\d+\.\d+)", answer)
    return _numbers(found.group(1)) if found else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _first(pattern: str, text: str, path: Path) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise StackError(f"{path} names no version", fix="restore the file from version control")
    return found.group(1)


async def ensure(artifact: Artifact, progress: Progress) -> Path:
    """The path of the artifact, made now if the cache lacks it.

    Waits while another run makes the same one. Raises `StackError` with the last lines of its log when it fails.
    """
    if artifact.made:
        return artifact.path
    artifact.log.parent.mkdir(parents=True, exist_ok=True)
    artifact.path.parent.mkdir(parents=True, exist_ok=True)
    async with (
        progress.during(artifact.name, artifact.text),
        locked(
            cache_folder() / f".{artifact.path.name}.lock",
            on_wait=lambda: progress.say(artifact.name, "another run is at it: waiting for that one"),
        ) as lock,
    ):
        if not artifact.made:
            await _make(artifact, lock)
    progress.say(artifact.name, f"in the cache: {artifact.path}")
    return artifact.path


async def _make(artifact: Artifact, lock: int) -> None:
    partial = artifact.path.with_name(f"{artifact.path.name}.partial")
    _remove(partial)
    argv = [part.replace(_TARGET, str(partial)) for part in artifact.argv]
    with artifact.log.open("wb") as log:
        try:
            maker = await asyncio.create_subprocess_exec(
                *argv,
                cwd=artifact.cwd,
                env={**os.environ, **artifact.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # It holds the lock too: should this program be killed, nobody else writes the same files beside it.
                pass_fds=(lock,),
            )
        except FileNotFoundError as error:
            raise StackError(f"{artifact.name} cannot be made: the program {argv[0]} is missing") from error
    try:
        code = await maker.wait()
    except asyncio.CancelledError:
        os.killpg(maker.pid, SIGKILL)
        await maker.wait()
        raise
    if code != 0:
        _remove(partial)
        reason = "\n  ".join(processes.tail(artifact.log, 15))
        raise StackError(
            f"{artifact.name} could not be made (exit status {code}); the end of {artifact.log}:\n  {reason}",
            fix="mend what it names, then run the same command again",
        )
    partial.rename(artifact.path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
