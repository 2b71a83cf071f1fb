"""The programs that the stack needs from the machine, and how to get them. Nothing is installed from here."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from typing import Final

from replank_local.artifacts import go_version, jaeger, kafka_jars, versitygw
from replank_local.errors import MissingTools
from replank_local.servers import postgres

OLDEST_JAVA: Final = 17
OLDEST_GO: Final = (1, 21)
"""The first Go that fetches the toolchain a module asks for."""


def missing(servers: Iterable[str]) -> list[tuple[str, str]]:
    """What the machine lacks for these servers, each with how to get it. What is in the cache needs no tool to make."""
    wanted = set(servers)
    lacks: list[tuple[str, str]] = []
    if "postgres" in wanted:
        try:
            postgres.programs()
            postgres.account()
        except MissingTools as error:
            lacks.append((error.message, error.fix))
    if "kafka" in wanted:
        if _java_version() < OLDEST_JAVA:
            lacks.append((f"Java >= {OLDEST_JAVA} (Kafka)", "apt-get install default-jre-headless"))
        if not kafka_jars().made and shutil.which("mvn") is None:
            lacks.append(("Maven (downloads Kafka's jars)", "apt-get install maven"))
    if "s3" in wanted and not versitygw().made and not _can_build():
        lacks.append((f"Go >= {_dotted(OLDEST_GO)} (builds the S3 server)", _GET_GO))
    return lacks


def jaeger_possible() -> bool:
    """Whether there is a Jaeger, or a way to make one. Everything but traces works without."""
    return jaeger().made or _can_build()


def require(servers: Iterable[str]) -> None:
    """Raise `MissingTools` that names everything these servers need and the machine lacks, all at once."""
    lacks = missing(servers)
    if lacks:
        listed = "\n".join(f"  - {what}: {get}" for what, get in lacks)
        raise MissingTools(f"this machine lacks what the stack needs:\n{listed}\nthen run the same command again")


_GET_GO: Final = "apt-get install golang-go (Debian 12: its backports)"


def _can_build() -> bool:
    version = go_version()
    return version is not None and version >= OLDEST_GO


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def _java_version() -> int:
    """The major version of the `java` on the path; 0 without one."""
    if shutil.which("java") is None:
        return 0
    answer = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', answer)
    return int(found.group(1)) if found else 0
