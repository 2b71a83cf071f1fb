"""`make up` where a Docker engine answers: the same stack by docker-compose.yml.

The composition reads ``compose.env`` in the stack's folder: REPLANK_PORT_<NAME> for every port that it publishes on
loopback, REPLANK_PASSWORD_<NAME> for every secret, REPLANK_SECRETS for the folder of key set and tokens, and compose's
own COMPOSE_PROJECT_NAME and COMPOSE_FILE, so that ``docker compose --env-file`` by hand means the same stack.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from replank_local import ports, state
from replank_local.credentials import Secrets
from replank_local.errors import NotRunning, StackError
from replank_local.locks import locked
from replank_local.places import CHECKOUT
from replank_local.progress import Progress
from replank_local.servers import SERVERS
from replank_local.services import PROGRAMS, READER, UNITS, VAULTS, shell_file
from replank_local.state import State, Way, write_private

FILE: Final = CHECKOUT / "docker-compose.yml"
OVERLAY: Final = "REPLANK_COMPOSE_OVERLAY"
"""The variable that names one more compose file, to be laid over ours by `up`."""
_LONG_RUNNING: Final = (*SERVERS, *PROGRAMS)
_SET_HERE: Final = ("REPLANK_PORT_", "REPLANK_PASSWORD_", "REPLANK_SECRETS", "COMPOSE_FILE", "COMPOSE_PROJECT_NAME")
_ANSWER_SECONDS: Final = 10


def choose_way(progress: Progress) -> Way:
    """Docker where an engine of this machine answers, else processes. REPLANK_STACK=native or docker forces one."""
    forced = os.environ.get("REPLANK_STACK", "")
    if forced not in {"", "native", "docker"}:
        raise StackError(f"REPLANK_STACK is {forced!r}", fix="set it to native or docker, or not at all")
    reason = "REPLANK_STACK says so" if forced == "native" else why_not()
    if forced == "docker" and reason:
        raise StackError(f"REPLANK_STACK is docker, and {reason}", fix="mend that, or unset it")
    if not reason:
        progress.say("stack", "with Docker: docker-compose.yml (REPLANK_STACK=native forces processes)")
        return "docker"
    progress.say("stack", f"as processes of this machine: {reason}")
    return "native"


def why_not() -> str:
    """Why the composition cannot run on this machine; empty when it can."""
    if shutil.which("docker") is None or not _answer("docker", "info", "--format", "{{.ServerVersion}}"):
        return "no Docker engine answers"
    if not _answer("docker", "compose", "version", "--short"):
        return "docker has no compose plugin"
    address = os.environ.get("DOCKER_HOST") or _answer(
        "docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"
    )
    if not address.startswith(("unix:", "npipe:")):
        # It would look for our files on its own disk, and publish the ports on its own loopback.
        return f"the Docker engine is on another machine ({address})"
    return ""


def _answer(*command: str) -> str:
    """What a command prints; nothing when it fails or takes too long."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


async def up(root: Path, progress: Progress) -> None:
    """Build and start the composition, and wait until it is healthy. Raises `StackError`; docker has said why.

    Repeating it starts what is missing, and renews the bearer tokens.
    """
    async with _held(root, progress):
        _prepare(root)
        progress.say("compose", "building and starting; docker shows its own progress")
        # By name: the others end when they have done their work, which --wait takes for a failure.
        _compose(root, "up", "--detach", "--build", "--wait", "--remove-orphans", *_LONG_RUNNING)
        for program in PROGRAMS.values():
            if program.has_post_migrations:
                _compose(root, "run", "--rm", "--no-deps", f"{program.name}-migrate-post")


def _prepare(root: Path) -> None:
    """Choose the ports, make the secrets, and write down what the composition is filled in with."""
    known = state.load(root)
    if known.processes:
        raise StackError("this stack runs as processes", fix="stop it first: `make down`")
    _claim_ports(known)
    secrets = Secrets(root / "secrets")
    secrets.renew_tokens(list(PROGRAMS))
    _hand_out(secrets, root / "compose-secrets")
    overlay = os.environ.get(OVERLAY, "")
    files = [FILE, *([Path(overlay).resolve()] if overlay else [])]
    values = variables(root, known, secrets) | {"COMPOSE_FILE": os.pathsep.join(map(str, files))}
    write_private(root / "compose.env", shell_file(values))
    state.save(root, State(way="docker", ports=known.ports))


@asynccontextmanager
async def _held(root: Path, progress: Progress) -> AsyncIterator[None]:
    async with locked(_lock_file(root), on_wait=lambda: progress.say("stack", "another command is at it: waiting")):
        yield


def _lock_file(root: Path) -> Path:
    root.mkdir(mode=0o711, parents=True, exist_ok=True)
    return root / ".lock"


def _claim_ports(known: State) -> None:
    """Give each port the number it had, else its usual one, else a free one. A running composition keeps its own."""
    taken: set[int] = set()
    for unit in (*SERVERS.values(), *UNITS):
        for name, usual in unit.ports.items():
            wanted = known.ports.get(name, usual)
            if known.way != "docker" and (wanted in taken or not ports.is_free(wanted)):
                wanted = ports.free_port(taken)
            known.ports[name] = wanted
            taken.add(wanted)


def _hand_out(secrets: Secrets, folder: Path) -> None:
    """Copy to each program, in a folder of its own, the key set and its own token; the signing key goes to nobody.

    The account in a container is another than ours, so these files are for all to read; the folder around them keeps
    the other accounts of this machine out. Folders are mounted, not files: a file that is replaced would stay in a
    container what it was when that started.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    for program in PROGRAMS:
        own = folder / program
        own.mkdir(exist_ok=True)
        own.chmod(0o755)
        for name, source in {"jwks.json": secrets.jwks, "token": secrets.token_file(program)}.items():
            partial = own / f".{name}"
            partial.write_text(source.read_text())
            partial.chmod(0o644)
            partial.replace(own / name)


def variables(root: Path, known: State, secrets: Secrets) -> dict[str, str]:
    """What docker-compose.yml is filled in with."""
    roles = (READER, *(program.role for program in PROGRAMS.values()), *(vault.role for vault in VAULTS))
    passwords = ("postgres", "valkey", "s3", *(vault.secret for vault in VAULTS), *roles)
    return {
        **{f"REPLANK_PORT_{_upper(name)}": str(port) for name, port in sorted(known.ports.items())},
        **{f"REPLANK_PASSWORD_{_upper(name)}": secrets.password(name) for name in passwords},
        "REPLANK_SECRETS": str(root.resolve() / "compose-secrets"),
        # Containers and volumes are named after it: two checkouts on one engine must not meet.
        "COMPOSE_PROJECT_NAME": f"replank-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]}",
    }


def _upper(name: str) -> str:
    return name.replace("-", "_").replace(".", "_").upper()


async def down(root: Path, progress: Progress) -> None:
    """Stop the composition and remove its containers. Volumes stay."""
    async with _held(root, progress):
        _compose(root, "down", "--remove-orphans")
        state.save(root, State(ports=state.load(root).ports))


async def clean(root: Path, progress: Progress) -> None:
    """Remove the volumes of a stopped composition, if there ever was one, and what it was filled in with."""
    if not (root / "compose.env").exists():
        return
    async with _held(root, progress):
        if state.load(root).way == "docker":
            raise StackError("the stack is running", fix="stop it first: `make down`")
        if why := why_not():
            raise StackError(
                f"this stack has data in Docker volumes, and {why}",
                fix=f"mend that; or remove {root / 'compose.env'}, and the volumes stay",
            )
        _compose(root, "down", "--volumes", "--remove-orphans")
        (root / "compose.env").unlink()
        shutil.rmtree(root / "compose-secrets", ignore_errors=True)


def restart(root: Path, name: str) -> None:
    """Stop one server or service, and start it on the same data."""
    _compose(root, "restart", name)
    _compose(root, "up", "--detach", "--wait", "--no-build", "--no-recreate", name)


def any_running(root: Path) -> bool:
    """Whether any container of the composition runs now."""
    return any(container["State"] == "running" for container in _containers(root))


def status(root: Path) -> bool:
    """Show the containers. True when every server and service is healthy."""
    healthy = {
        container["Service"]
        for container in _containers(root)
        if container["State"] == "running" and container["Health"] == "healthy"  # a paused one keeps its last health
    }
    _compose(root, "ps", "--all", "--format", "table {{.Service}}\t{{.Status}}\t{{.Ports}}")
    return healthy >= set(_LONG_RUNNING)


def _containers(root: Path) -> list[dict[str, str]]:
    """Docker's own words on each container; it prints one JSON object a line. Raises `NotRunning` without an answer."""
    command = _command(root, "ps", "--all", "--format", "json")
    answer = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise StackError("docker compose cannot say what runs: " + answer.stderr.strip(), fix="is the engine up?")
    if not answer.stdout.strip():
        raise NotRunning
    return [json.loads(line) for line in answer.stdout.splitlines()]


def logs(root: Path, name: str | None, *, follow: bool, lines: int) -> None:
    """The end of one log, or of each; with ``follow`` it goes on until it is interrupted."""
    try:
        _compose(root, "logs", "--tail", str(lines), *(["--follow"] if follow else []), *([name] if name else []))
    except KeyboardInterrupt:
        return


def _compose(root: Path, *arguments: str) -> None:
    code = subprocess.run(
        _command(root, *arguments), env=_environment(), check=False, stdin=subprocess.DEVNULL
    ).returncode
    if code != 0:
        raise StackError(
            f"docker compose {arguments[0]} failed with exit status {code}",
            fix="mend what it says above, or use processes: `make down`, then REPLANK_STACK=native",
        )


def _command(root: Path, *arguments: str) -> list[str]:
    return ["docker", "compose", "--env-file", str(root / "compose.env"), *arguments]


def _environment() -> dict[str, str]:
    """Our environment without what would go before compose.env: another stack's values, another project's files."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_SET_HERE)}
