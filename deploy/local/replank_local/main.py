"""The `replank-local` command; the Makefile calls it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from replank.errors import ReplankError
from replank_local import artifacts, compose, native, report, run, state
from replank_local.errors import NotRunning, StackError
from replank_local.places import STACK_ROOT
from replank_local.progress import Progress
from replank_local.servers import TEST_SERVERS

INTERRUPTED: Final = 130

app = typer.Typer(
    name="replank-local",
    help="The local stack: real servers, all services and the example as processes of this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Root = Annotated[Path, typer.Option(help="The stack's folder.", show_default=False)]
Command = Annotated[list[str], typer.Argument(help="The command and its arguments, after --.")]
Servers = Annotated[list[str] | None, typer.Option(help="Only this server; may be repeated.", show_default=False)]
_PASS_ON: Final = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command()
def up(
    root: Root = STACK_ROOT,
    only_servers: Annotated[bool, typer.Option("--only-servers", help="Leave services and example out.")] = False,
) -> None:
    """Bring up servers, databases, migrations, services and the example. Repeat it to start what is missing."""
    progress = Progress.to_stderr()
    _up(root, progress, only_servers=only_servers)
    progress.say("stack", 'up. `make status` shows it; eval "$(make env)" tells your shell where it is')


def _up(root: Path, progress: Progress, *, only_servers: bool = False) -> None:
    known = state.load(root)
    way = known.way if known.processes or known.way == "docker" else compose.choose_way(progress)
    if way == "docker":
        if only_servers:
            raise StackError("--only-servers is for processes, and this stack is Docker's", fix="leave it out")
        asyncio.run(compose.up(root, progress))
    else:
        asyncio.run(native.up(root, progress, only_servers=only_servers))


@app.command()
def down(root: Root = STACK_ROOT) -> None:
    """Stop what `up` started. Data stays."""
    progress = Progress.to_stderr()
    if state.load(root).way == "docker":
        asyncio.run(compose.down(root, progress))
    elif not asyncio.run(native.down(root, progress)):
        progress.say("stack", "was not running")


@app.command()
def status(root: Root = STACK_ROOT) -> None:
    """What runs, where, and whether it is ready; exit status 1 when something is not."""
    if state.load(root).way == "docker":
        if not compose.status(root):
            raise typer.Exit(1)
        return
    if not state.load(root).processes:
        raise NotRunning
    if not asyncio.run(report.print_status(native.known(root, Progress()), Console())):
        raise typer.Exit(1)


@app.command()
def logs(
    name: Annotated[str | None, typer.Argument(help="A server or service; all of them without.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0)] = 50,
    root: Root = STACK_ROOT,
) -> None:
    """The end of a log."""
    if state.load(root).way == "docker":
        compose.logs(root, name, follow=follow, lines=lines)
    else:
        report.show_logs(native.known(root, Progress()), name, follow=follow, lines=lines)


@app.command()
def env(root: Root = STACK_ROOT) -> None:
    """Print where the running stack is, for eval."""
    print(report.shell_exports(root))


@app.command()
def clean(root: Root = STACK_ROOT) -> None:
    """Remove data, secrets and logs of a stopped stack."""
    progress = Progress.to_stderr()
    asyncio.run(compose.clean(root, progress))
    asyncio.run(native.clean(root, progress))


@app.command()
def restart(name: str, root: Root = STACK_ROOT) -> None:
    """Stop one server or service, and start it again on the same data."""
    if state.load(root).way == "docker":
        compose.restart(root, name)
    else:
        asyncio.run(native.restart(root, name, Progress.to_stderr()))


@app.command(context_settings=_PASS_ON)
def demo(context: typer.Context, root: Root = STACK_ROOT) -> None:
    """Bring the stack up, tell the story against it, and leave it up. Options of `replank demo` are passed on."""
    _up(root, Progress.to_stderr())
    variables = report.addresses_of(root)
    code = subprocess.run(
        [str(Path(sys.executable).with_name("replank")), "demo", *context.args],
        check=False,
        env={**os.environ, **variables},
    ).returncode
    raise typer.Exit(code)


@app.command("test", context_settings=_PASS_ON)
def run_tests(command: Command, server: Servers = None, root: Root = STACK_ROOT) -> None:
    """Run a command with servers of its own, found by REPLANK_TEST_*, and take them down after it."""
    _run(command, server, root)


def _run(command: list[str], servers: list[str] | None, root: Path) -> None:
    code = asyncio.run(run.with_servers(command, root, Progress.to_stderr(), servers=servers or TEST_SERVERS))
    raise typer.Exit(code)


@app.command(context_settings=_PASS_ON)
def bench(command: Command, server: Servers = None, root: Root = STACK_ROOT) -> None:
    """The same, for a benchmark."""
    _run(command, server, root)


@app.command(hidden=True)
def jaeger(root: Root = STACK_ROOT) -> None:
    """Build Jaeger and start it; `up` runs this behind itself."""
    asyncio.run(native.jaeger_when_built(root, Progress.to_stderr()))


@app.command()
def fetch() -> None:
    """Download and build what the cache lacks, Jaeger too, and start nothing."""
    progress = Progress.to_stderr()

    async def all_of_them() -> None:
        for make in (artifacts.kafka_jars, artifacts.versitygw, artifacts.jaeger):
            await artifacts.ensure(make(), progress)

    asyncio.run(all_of_them())


def main() -> None:
    """Run the command. A known error is a clear text on standard error and exit status 1, never a traceback."""
    try:
        app()
    except ReplankError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.fix:
            print(f"  what to do: {error.fix}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; `make up` goes on from here, `make down` stops what was started", file=sys.stderr)
        sys.exit(INTERRUPTED)
