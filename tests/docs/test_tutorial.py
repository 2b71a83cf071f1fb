"""The tutorial, done as it stands: its programs written down, its commands run, its outputs compared."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from replank.testing import eventually, servers

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "tutorial" / "first-event.md"
DATABASE, TOPIC = "first_event", "shop.orders"

_BLOCK = re.compile(r"^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (?P<name>\w+\.py)\n")
_PIN = re.compile(r"^[a-z0-9][\w.-]*==[\w.]+", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: a program (``python``), commands (``sh``), or what the commands before it print (``text``)."""

    kind: str
    text: str


def blocks(page: str) -> list[Block]:
    return [Block(found["kind"], found["text"]) for found in _BLOCK.finditer(page)]


class Shell:
    """One bash, as a reader has it: what a block exports, and the jobs that it starts, are there for the next one."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, commands: str) -> str:
        """Run the commands and answer what they print. Raises `AssertionError` when one of them fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # Not a subshell: jobs and variables stay. With `set -e` a failure ends the shell, and so its output.
        self._process.stdin.write(f"{commands}\necho; echo :done:\n".encode())
        await self._process.stdin.drain()
        lines = []
        while (line := (await self._process.stdout.readline()).decode()) != ":done:\n":
            assert line, f"the shell ended within:\n{commands}"
            lines.append(line)
        return "".join(lines).removesuffix("\n")


def _logs(folder: Path) -> str:
    return "\n".join(f"{log.name}:\n{log.read_text()[-4000:]}" for log in sorted(folder.glob("*.log")))


@contextlib.asynccontextmanager
async def shell(folder: Path, env: dict[str, str]) -> AsyncIterator[Shell]:
    with (folder / "stderr.log").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            "bash",
            cwd=folder,
            env=env,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            started = Shell(process)
            await started.run("set -eo pipefail")
            yield started
        except AssertionError as error:
            raise AssertionError(f"{error}\n{_logs(folder)}") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@pytest.mark.timeout(400)
async def test_the_tutorial_does_what_it_says(tmp_path: Path, postgres_server: str, kafka: str) -> None:
    name = servers.fresh_name()
    page = PAGE.read_text().replace(DATABASE, name).replace(TOPIC, name)
    constraints = tmp_path / "constraints.txt"
    # The versions that this repository is tested with.
    constraints.write_text("\n".join(_PIN.findall((CHECKOUT / "requirements.lock").read_text())))
    folder = tmp_path / "shop"
    folder.mkdir()
    env = {
        variable: value
        for variable, value in os.environ.items()
        if not variable.startswith("REPLANK_") and variable not in {"VIRTUAL_ENV", "PYTHONPATH"}
    }
    own = str(Path(sys.executable).parent)
    inherited = [part for part in env["PATH"].split(os.pathsep) if part != own]
    env |= {
        # The reader's Python, not the environment that the tests run in: the one that this was made from.
        "PATH": os.pathsep.join([str(Path(sys.base_prefix) / "bin"), *inherited]),
        "CHECKOUT": str(CHECKOUT),
        "REPLANK_POSTGRES_DSN": postgres_server,
        "REPLANK_KAFKA": kafka,
        "PIP_CONSTRAINT": str(constraints),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }

    found = blocks(page)
    checked = 0
    try:
        async with shell(folder, env) as bash:
            for block, following in zip(found, [*found[1:], None], strict=True):
                if block.kind == "python":
                    program = _FILE.match(block.text)
                    assert program, f"a program without a name:\n{block.text}"
                    (folder / program["name"]).write_text(block.text)
                elif block.kind == "sh" and following is not None and following.kind == "text":
                    await _prints(bash, block.text, following.text)
                    checked += 1
                elif block.kind == "sh":
                    await bash.run(block.text)
    finally:
        await _clean_up(postgres_server, kafka, name)
    assert checked >= 5


async def _prints(bash: Shell, commands: str, expected: str) -> None:
    """Look again until the commands print what the page says: they only look, and what they look at takes a moment."""

    async def same() -> bool:
        printed = await bash.run(commands)
        assert printed == expected, f"{commands}prints\n{printed}instead of\n{expected}"
        return True

    await eventually(same, "the page's output", within=60, interval=0.25)


async def _clean_up(postgres: str, kafka: str, name: str) -> None:
    conn = await asyncpg.connect(postgres)
    await conn.execute(f'drop database if exists "{name}" with (force)')
    await conn.close()
    await servers.delete_topics(kafka, [name, f"{name}.dlq"])


def test_every_block_of_the_tutorial_is_run() -> None:
    assert {block.kind for block in blocks(PAGE.read_text())} == {"python", "sh", "text"}
    # A fence that the expression does not match would not be run.
    assert PAGE.read_text().count("```") == 2 * len(blocks(PAGE.read_text()))
