"""Postgres, with passwords even on loopback, logical decoding, and durable writes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path
from signal import SIGINT, SIGQUIT
from typing import Final

import asyncpg
import psutil

from replank_local import processes
from replank_local.errors import MissingTools, StackError
from replank_local.ports import HOST
from replank_local.state import write_private
from replank_local.unit import Command, Place, Unit

OLDEST: Final = 15
_ACCOUNT: Final = "postgres"
_OUTSIDE: Final = Path("/var/lib/replank-local")

_SETTINGS: Final = """\
listen_addresses = '{host}'
port = {port}
unix_socket_directories = ''
password_encryption = 'scram-sha-256'
max_connections = 300
shared_buffers = '256MB'
wal_level = 'logical'
max_replication_slots = 20
max_wal_senders = 20
max_locks_per_transaction = 256
shared_preload_libraries = 'pg_stat_statements'
log_line_prefix = '%m [%p] %q%a %d '
log_checkpoints = off
timezone = 'UTC'
# In the data folder and not in the system's shared memory: a server that is killed leaves nothing behind elsewhere.
dynamic_shared_memory_type = 'mmap'
"""


def programs(*, major: int | None = None) -> Path:
    """The folder of the server's programs: the newest version from 15 on, or exactly ``major``.

    The variable REPLANK_POSTGRES_BIN names another folder. Raises `MissingTools`.
    """
    versions: dict[int, Path] = {}
    for folder in _candidates():
        versions.setdefault(_major(folder), folder)
    usable = [version for version in versions if version >= OLDEST and major in {None, version}]
    if not usable:
        wanted = f"PostgreSQL {major}, which made this stack's data," if major else f"PostgreSQL server >= {OLDEST}"
        raise MissingTools(f"{wanted} is not installed", fix="apt-get install postgresql, or set REPLANK_POSTGRES_BIN")
    return versions[max(usable)]


def _candidates() -> list[Path]:
    chosen = os.environ.get("REPLANK_POSTGRES_BIN")
    if chosen:
        return [Path(chosen)]
    on_path = shutil.which("postgres")
    return [
        *Path("/usr/lib/postgresql").glob("*/bin"),
        *Path("/usr").glob("pgsql-*/bin"),
        *([Path(on_path).resolve().parent] if on_path else []),
    ]


def _major(folder: Path) -> int:
    """The major version of the server in this folder; 0 when there is none."""
    program = folder / "postgres"
    if not program.exists() or not (folder / "initdb").exists():
        return 0
    answer = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+)", answer)
    return int(found.group(1)) if found else 0


def account() -> str | None:
    """The account that the server runs as; None for one's own. It refuses to run as root, whoever asks."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(_ACCOUNT).pw_name
    except KeyError:
        raise MissingTools(
            f"Postgres does not run as root, and there is no account {_ACCOUNT!r} to run it as",
            fix="apt-get install postgresql (which makes the account), or run this as another user",
        ) from None


async def _prepare(place: Place) -> Command:
    owner = account()
    folder = _folder(place, owner)
    data = folder / "data"
    if not (data / "PG_VERSION").exists():
        await _initialise(place, folder, owner)
    bin_folder = programs(major=int((data / "PG_VERSION").read_text()))
    settings = data / "replank.conf"
    settings.write_text(_SETTINGS.format(host=HOST, port=place.ports["postgres"]))
    _give(settings, owner)
    _forget_stranger(data)
    return Command(argv=[str(bin_folder / "postgres"), "-D", str(data)], cwd=data, account=owner)


def _folder(place: Place, owner: str | None) -> Path:
    """The server's folder, owned by its account. Outside the stack's own where that account cannot reach it."""
    folder = place.data("postgres")
    if owner is not None and not folder.exists() and not _reachable(place.root):
        outside = _OUTSIDE / hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        outside.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(outside)
    folder = folder.resolve()
    folder.mkdir(mode=0o700, exist_ok=True)
    _give(folder, owner)
    return folder


def _reachable(root: Path) -> bool:
    """Whether other accounts may pass through this folder and all above it (they may not through /root, mostly)."""
    return all(folder.stat().st_mode & 0o001 for folder in (root, *root.parents))


def _give(path: Path, owner: str | None) -> None:
    if owner is not None:
        shutil.chown(path, owner, pwd.getpwnam(owner).pw_gid)


async def _initialise(place: Place, folder: Path, owner: str | None) -> None:
    """Make the data folder under another name, renamed when it is whole: a kill leaves no half of one."""
    partial = folder / "data.partial"
    password = folder / "password"
    shutil.rmtree(partial, ignore_errors=True)
    write_private(password, place.secrets.password("postgres"))
    _give(password, owner)
    log = place.log("postgres")
    with log.open("ab") as out:
        initdb = await asyncio.create_subprocess_exec(
            *(
                str(programs() / "initdb"),
                "--pgdata",
                str(partial),
                "--username",
                "postgres",
                "--pwfile",
                str(password),
            ),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--data-checksums"),
            *("--locale", "C.UTF-8" if sys.platform == "linux" else "C"),
            *(() if place.durable else ("--no-sync",)),
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            user=owner,
            group=owner,
            extra_groups=[] if owner else None,
        )
    code = await initdb.wait()
    password.unlink()
    if code != 0:
        reason = "\n  ".join(processes.tail(log, 10))
        raise StackError(f"initdb failed; the end of {log}:\n  {reason}")
    with (partial / "postgresql.conf").open("a") as configuration:
        configuration.write("include = 'replank.conf'\n")
    partial.rename(folder / "data")


def _forget_stranger(data: Path) -> None:
    """Remove the lock file of a killed server whose pid somebody else has now.

    A pid that nobody has, the server finds out by itself; one that is somebody's it takes for a running server.
    """
    lock = data / "postmaster.pid"
    if not lock.exists():
        return
    try:
        if psutil.Process(int(lock.read_text().split()[0])).cwd() != str(data):
            lock.unlink()
    except psutil.AccessDenied:  # a process of another account: not this server
        lock.unlink()
    except (psutil.NoSuchProcess, ValueError, IndexError):
        return


async def _ready(place: Place) -> bool:
    try:
        connection = await asyncpg.connect(place.endpoints.postgres(), timeout=5)
    except (asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError, TimeoutError):
        return False
    except asyncpg.InvalidPasswordError as error:
        raise StackError(
            "Postgres refuses the password in the stack's secrets: they were made anew for old data",
            fix="put the old secrets folder back, or remove the data with `make clean`",
        ) from error
    await connection.close()
    return True


POSTGRES: Final = Unit(
    name="postgres",
    ports={"postgres": 25432},
    prepare=_prepare,
    ready=_ready,
    stop_signal=SIGINT,
    # An immediate shutdown: unlike SIGKILL it ends the backends too and removes the shared memory.
    quick_signal=SIGQUIT,
    stop_within=30,
)
