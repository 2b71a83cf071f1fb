"""What a stack says about itself: its status, its logs, and its addresses for a shell."""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console
from rich.table import Table

from replank_local import compose, processes, state
from replank_local.credentials import Secrets
from replank_local.endpoints import S3_ACCESS_KEY, Endpoints
from replank_local.errors import NotRunning, StackError
from replank_local.ports import HOST
from replank_local.servers.valkey import MEMORY_LIMITS
from replank_local.services import PROGRAMS, dsns
from replank_local.stack import Stack

_LAST_LINES: Final = 5


async def print_status(stack: Stack, console: Console) -> bool:
    """A line for each unit, and for each dead one the end of its log. True when all that was started works."""
    table = Table(box=None, pad_edge=False)
    for column in ("unit", "state", "address", "pid", "up", "memory"):
        table.add_column(column, justify="right" if column in {"pid", "up", "memory"} else "left")
    dead: list[str] = []
    works = True
    for name, unit in stack.units.items():
        identity = stack.identity(name)
        if identity is None:
            works = False
            table.add_row(name, "[dim]not started[/]", "", "", "", "")
            continue
        if not processes.alive(identity):
            dead.append(name)
            table.add_row(name, "[bold red]dead[/]", "", str(identity.pid), "", "")
            continue
        ready = await stack.is_ready(name)
        works = works and ready
        state_text = "[green]ready[/]" if ready else "[yellow]not ready[/]"
        address = f"{HOST}:{stack.ports[next(iter(unit.ports))]}"
        table.add_row(name, state_text, address, str(identity.pid), *_uptime_and_memory(identity.pid))
    console.print(table)
    for name in stack.state.processes.keys() - stack.units.keys():
        doing = "at it" if stack.running(name) else "[bold red]dead[/]"
        console.print(f"{name}: {doing}, log {stack.log(name)}")
    for name in dead:
        console.print(f"\n[bold red]{name} is dead.[/] The end of {stack.log(name)}:", highlight=False)
        for line in processes.tail(stack.log(name), _LAST_LINES):
            console.print(f"  {line}", markup=False, highlight=False)
    return works and not dead


def _uptime_and_memory(pid: int) -> tuple[str, str]:
    try:
        process = psutil.Process(pid)
        seconds = time.time() - process.create_time()
        size = sum(member.memory_info().rss for member in (process, *process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return "", ""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min", f"{size / 2**20:.0f} MB"


def show_logs(stack: Stack, name: str | None, *, follow: bool, lines: int) -> None:
    """The end of one log, or of each; with ``follow`` it goes on until it is interrupted."""
    folder = stack.root / "logs"
    chosen = [folder / f"{name}.log"] if name else sorted(folder.glob("*.log"))
    lacking = [path for path in chosen if not path.exists()]
    if lacking:
        there = ", ".join(sorted(path.stem for path in folder.glob("*.log"))) or "none yet"
        raise StackError(f"there is no log of {name}", fix=f"there are: {there}")
    try:
        # tail(1) reopens a log that is replaced, and marks which file a line is from.
        subprocess.run(["tail", "-n", str(lines), *(["-F"] if follow else []), *map(str, chosen)], check=False)
    except KeyboardInterrupt:
        return


def shell_exports(root: Path) -> str:
    """Lines for ``eval`` that say where the running stack is. Raises `NotRunning`."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in addresses_of(root).items()]
    # Last, so that it harms nobody whose shell joins the lines.
    return "\n".join([*lines, "# REPLANK_CONSOLE_URL is empty: there is no console yet"])


def addresses_of(root: Path) -> dict[str, str]:
    """The addresses of the stack that runs in this folder. Raises `NotRunning`."""
    known = state.load(root)
    if known.way == "docker":
        runs = compose.any_running(root)
    else:
        runs = any(processes.alive(identity) for identity in known.processes.values())
    if not runs:
        raise NotRunning
    return addresses(Endpoints(known.ports, Secrets(root / "secrets")))


def addresses(endpoints: Endpoints) -> dict[str, str]:
    """Where everything of the stack is, by the name that clients look for."""
    variables: dict[str, str] = {}
    for program in PROGRAMS.values():
        variables[f"{program.prefix}_URL"] = endpoints.http(program.name)
        variables |= {f"{program.prefix}_{setting}": dsn for setting, dsn in dsns(program, endpoints).items()}
    return variables | {
        "REPLANK_CONSOLE_URL": "",
        "REPLANK_JAEGER_URL": endpoints.jaeger,
        "REPLANK_OTLP_URL": endpoints.otlp,
        "REPLANK_KAFKA": endpoints.kafka,
        "REPLANK_VALKEY_URL": endpoints.valkey("authorization"),
        **{f"REPLANK_VALKEY_{kind.upper()}_URL": endpoints.valkey(kind) for kind in MEMORY_LIMITS},
        "REPLANK_S3_URL": endpoints.s3,
        "REPLANK_S3_ACCESS_KEY": S3_ACCESS_KEY,
        "REPLANK_S3_SECRET_KEY": endpoints.s3_secret_key,
        "REPLANK_POSTGRES_DSN": endpoints.postgres(),
        "REPLANK_TOKEN": endpoints.secrets.token_file("admin").read_text(),
    }
