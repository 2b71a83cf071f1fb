"""versitygw: an S3 server that keeps objects as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from replank_local.artifacts import versitygw
from replank_local.endpoints import S3_ACCESS_KEY
from replank_local.ports import HOST
from replank_local.unit import Command, Place, Unit, http_ok


async def _prepare(place: Place) -> Command:
    folder = place.data_folder("s3")
    for part in ("objects", "versions", "accounts"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    argv = [str(versitygw().path), "--port", f"{HOST}:{place.ports['s3']}", "--quiet", "--health", "/health"]
    # Outside the folder of objects, where every folder is a bucket.
    argv += ["--iam-dir", str(folder / "accounts")]
    argv += ["posix", "--versioning-dir", str(folder / "versions")]
    if not _has_extended_attributes(folder):
        (folder / "metadata").mkdir(exist_ok=True)
        argv += ["--sidecar", str(folder / "metadata")]
    return Command(
        argv=[*argv, str(folder / "objects")],
        cwd=folder,
        # Not as arguments: those can be read by every user of the machine.
        environment={"ROOT_ACCESS_KEY": S3_ACCESS_KEY, "ROOT_SECRET_KEY": place.endpoints.s3_secret_key},
    )


def _has_extended_attributes(folder: Path) -> bool:
    """Whether this filesystem keeps the attributes in which versitygw stores an object's metadata."""
    try:
        os.setxattr(folder, "user.replank", b"probe")
        os.removexattr(folder, "user.replank")
    except OSError:
        return False
    return True


async def _ready(place: Place) -> bool:
    return await http_ok(place.ports["s3"], "/health")


S3: Final = Unit(name="s3", ports={"s3": 29070}, prepare=_prepare, ready=_ready, artifact=versitygw)
