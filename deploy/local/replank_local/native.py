"""`make up` without Docker: the servers, services and examples as processes of this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from replank_local import processes, services, tools
from replank_local.artifacts import ensure, jaeger
from replank_local.errors import StackError
from replank_local.locks import locked
from replank_local.places import TEST_PREFIX
from replank_local.progress import Progress
from replank_local.provision import provision
from replank_local.servers import SERVERS
from replank_local.services import PROGRAMS, Service
from replank_local.stack import Stack
from replank_local.state import write_private
from replank_local.together import together

JAEGER_BUILD: Final = "jaeger-build"
_MIGRATION_SECONDS: Final = 300


def known(root: Path, progress: Progress) -> Stack:
    """The stack of `make up` in this folder, as it was left."""
    return Stack(
        root, servers=SERVERS, units=services.UNITS, choose_ports="usual", lifetime="detached", progress=progress
    )


@asynccontextmanager
async def held(root: Path, progress: Progress) -> AsyncIterator[Stack]:
    """The stack of `make up` in this folder, which no other command changes meanwhile; waits for the one that does."""
    current = known(root, progress)  # makes the folder
    async with locked(
        current.root / ".lock", on_wait=lambda: progress.say("stack", "another command is at it: waiting")
    ):
        yield known(root, progress)  # as the command left it that held the lock before


async def up(root: Path, progress: Progress, *, only_servers: bool = False) -> Stack:
    """Bring up servers, what the programs own, migrations, programs. Repeating it starts what is missing.

    Repeating it also renews the bearer tokens, which are good for 30 days.
    Without Jaeger it goes on, and starts it when it is built. Raises `StackError`; what was started stays.
    """
    async with held(root, progress) as stack:
        built = jaeger().made
        required = [name for name in SERVERS if built or name != "jaeger"]
        tools.require(required)
        before = dict(stack.ports)
        stack.claim_ports(*stack.units)
        if any(stack.ports[name] != port for name, port in before.items()):
            await stack.stop(*PROGRAMS)  # they were told another address
        if not built:
            _build_jaeger_behind(stack)
        stack.secrets.renew_tokens(list(PROGRAMS))
        await stack.start(*required)
        async with progress.during("provision", "roles, databases, buckets"):
            await provision(stack.endpoints, stack.secrets)
        _write_environment_files(stack)
        if not only_servers:
            await _start_programs(stack)
    return stack


async def _start_programs(stack: Stack) -> None:
    lacking = [program.name for program in PROGRAMS.values() if program.folder is None]
    if lacking:
        raise StackError(
            f"not installed in this environment: {', '.join(lacking)}", fix="run `make .venv`, then the same again"
        )
    starting = [program for program in PROGRAMS.values() if not stack.running(program.name)]
    async with stack.progress.during("migrate", "each program's database, before its code starts"):
        await together(*(_migrate(stack, program, "pre") for program in starting))
    await stack.start(*PROGRAMS)
    later = [program for program in starting if program.has_post_migrations]
    if later:
        async with stack.progress.during("migrate", "what had to wait until the new code runs"):
            await together(*(_migrate(stack, program, "post") for program in later))


async def _migrate(stack: Stack, program: Service, phase: str) -> None:
    name = f"{program.name}-migrate"
    variables = services.environment(program, stack.endpoints, stack.secrets)
    log = stack.log(name)
    with log.open("ab") as out:
        migration = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", program.module, "migrate", phase),
            env={**os.environ, **variables},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        async with asyncio.timeout(_MIGRATION_SECONDS):
            code = await migration.wait()
    except TimeoutError:
        migration.kill()
        await migration.wait()
        raise StackError(f"the migrations of {program.name} took over {_MIGRATION_SECONDS} s; see {log}") from None
    if code != 0:
        reason = "\n  ".join(processes.tail(log, 10))
        raise StackError(f"the {phase} migrations of {program.name} failed; the end of {log}:\n  {reason}")


def _write_environment_files(stack: Stack) -> None:
    """Each program's variables in a file, so that it can be run by hand: in a debugger, for one."""
    folder = stack.root / "env"
    folder.mkdir(mode=0o700, exist_ok=True)
    for program in PROGRAMS.values():
        variables = services.environment(program, stack.endpoints, stack.secrets)
        write_private(folder / f"{program.name}.env", services.shell_file(variables))


def _build_jaeger_behind(stack: Stack) -> None:
    """Start a process that builds Jaeger, then starts it. It belongs to the stack: `down` ends it."""
    if stack.running(JAEGER_BUILD):
        return
    if not tools.jaeger_possible():
        stack.progress.say("jaeger", "not there, and Go is not either: going on without traces")
        return
    stack.progress.say("jaeger", "built in the background; traces appear when it is ready (see `make status`)")
    stack.adopt(
        JAEGER_BUILD,
        processes.spawn(
            [sys.executable, "-m", "replank_local", "jaeger", "--root", str(stack.root)],
            log=stack.log(JAEGER_BUILD),
            cwd=stack.root,
        ),
    )


async def jaeger_when_built(root: Path, progress: Progress) -> None:
    """Build Jaeger and start it, unless the stack was stopped meanwhile."""
    await ensure(jaeger(), progress)
    async with held(root, progress) as stack:
        if JAEGER_BUILD in stack.state.processes:
            await stack.start("jaeger")
            stack.forget(JAEGER_BUILD)


async def down(root: Path, progress: Progress) -> bool:
    """Stop all that the stack in this folder started. Data stays. False when nothing ran."""
    async with held(root, progress) as stack:
        ran = stack.any_running()
        await stack.stop_all()
    return ran


async def clean(root: Path, progress: Progress) -> None:
    """Remove the data, secrets and logs of a stopped stack, and what test runs left."""
    async with held(root, progress) as stack:
        stack.remove_data()
        remove_runs(root, progress)


def remove_runs(root: Path, progress: Progress, *, keep: int = 0) -> None:
    """Remove the folders of finished test runs but the last ``keep``; one that still goes on is left alone."""
    runs = [Stack(run, servers=()) for run in sorted(root.glob(f"{TEST_PREFIX}*"))]
    finished = [run for run in runs if not run.any_running()]
    for run in finished[: len(finished) - keep]:
        run.remove_data()
        shutil.rmtree(run.root, ignore_errors=True)
    for run in runs:
        if run not in finished and not keep:
            progress.say("clean", f"{run.root.name} is running: left alone")


async def restart(root: Path, name: str, progress: Progress) -> None:
    """Stop one unit, and start it on the same data and ports."""
    async with held(root, progress) as stack:
        if name not in stack.units:
            raise StackError(f"no such server or program: {name}", fix=f"there are {', '.join(stack.units)}")
        await stack.restart(name)
