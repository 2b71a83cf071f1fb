"""`make up` where a Docker engine answers: the same stack by docker-compose.yml.

The composition reads ``compose.env`` in the stack's folder: REPLANK_PORT_<NAME> for every port that it publishes on
loopback, REPLANK_PASSWORD_<NAME> for every secret, and REPLANK_SECRETS for the folder of key and tokens.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from replank_local import ports, state
from replank_local.credentials import Secrets
from replank_local.errors import StackError
from replank_local.places import CHECKOUT
from replank_local.progress import Progress
from replank_local.servers import SERVERS
from replank_local.services import READER, SERVICES, UNITS, shell_file
from replank_local.state import State, Way, write_private

FILE: Final = CHECKOUT / "docker-compose.yml"
_ANSWER_SECONDS: Final = 10


def choose_way(progress: Progress) -> Way:
    """Docker where an engine answers, else processes. REPLANK_STACK=native or docker forces one."""
    forced = os.environ.get("REPLANK_STACK", "")
    if forced not in {"", "native", "docker"}:
        raise StackError(f"REPLANK_STACK is {forced!r}", fix="set it to native or docker, or not at all")
    answers = forced != "native" and _engine_answers()
    if forced == "docker" and not answers:
        raise StackError("REPLANK_STACK is docker, and no Docker engine answers", fix="start one, or unset it")
    if answers and FILE.exists():
        progress.say("stack", "with Docker: docker-compose.yml (REPLANK_STACK=native forces processes)")
        return "docker"
    reason = "REPLANK_STACK says so" if forced else "no Docker engine answers"
    progress.say("stack", f"as processes of this machine: {reason}")
    return "native"


def _engine_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    try:
        answer = subprocess.run(
            ["docker", "info", "--format", "{{.ServerVersion}}"],
            capture_output=True,
            check=False,
            timeout=_ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return False
    return answer.returncode == 0 and bool(answer.stdout.strip())


def up(root: Path, progress: Progress) -> None:
    """Build and start the composition, and wait until it is healthy. Raises `StackError`; docker has said why."""
    known = state.load(root)
    secrets = Secrets(root / "secrets")
    taken: set[int] = set()
    for unit in (*SERVERS.values(), *UNITS):
        for name, usual in unit.ports.items():
            wanted = known.ports.get(name, usual)
            if known.way != "docker" and (wanted in taken or not ports.is_free(wanted)):
                wanted = ports.free_port(taken)
            known.ports[name] = wanted
            taken.add(wanted)
    secrets.renew_tokens(list(SERVICES))
    state.save(root, State(way="docker", ports=known.ports))
    write_private(root / "compose.env", shell_file(variables(known, secrets)))
    progress.say("compose", "building and starting; docker shows its own progress")
    _compose(root, "up", "--detach", "--build", "--wait", *SERVERS, *SERVICES)


def variables(known: State, secrets: Secrets) -> dict[str, str]:
    """What docker-compose.yml is filled in with."""
    passwords = ("postgres", "valkey", "s3", READER, *(service.role for service in SERVICES.values()))
    return {
        **{f"REPLANK_PORT_{_upper(name)}": str(port) for name, port in sorted(known.ports.items())},
        **{f"REPLANK_PASSWORD_{_upper(name)}": secrets.password(name) for name in passwords},
        "REPLANK_SECRETS": str(secrets.jwks.parent),
    }


def _upper(name: str) -> str:
    return name.replace("-", "_").replace(".", "_").upper()


def down(root: Path) -> None:
    """Stop the composition and remove its containers. Volumes stay."""
    _compose(root, "down")


def clean(root: Path) -> None:
    """Remove the composition with its volumes."""
    _compose(root, "down", "--volumes")


def status(root: Path) -> None:
    _compose(root, "ps", "--all")


def logs(root: Path, name: str | None, *, follow: bool, lines: int) -> None:
    _compose(root, "logs", "--tail", str(lines), *(["--follow"] if follow else []), *([name] if name else []))


def _compose(root: Path, *arguments: str) -> None:
    command = ["docker", "compose", "--file", str(FILE), "--env-file", str(root / "compose.env"), *arguments]
    code = subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode
    if code != 0:
        raise StackError(
            f"docker compose {arguments[0]} failed with exit status {code}",
            fix="mend what it says above, or use processes: REPLANK_STACK=native",
        )
