"""What a stack knows about itself between two commands: `state.json` in its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from replank_local.errors import StackError
from replank_local.processes import Identity

Way = Literal["native", "docker"]


class State(BaseModel):
    """The ports a stack uses, kept when it stops, and the processes it started, until they are stopped."""

    model_config = ConfigDict(extra="forbid")

    way: Way = "native"
    ports: dict[str, int] = Field(default_factory=dict)
    processes: dict[str, Identity] = Field(default_factory=dict)


def load(root: Path) -> State:
    """The state of the stack in this folder; an empty one when there never was a stack."""
    path = root / "state.json"
    try:
        return State.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return State()
    except ValidationError as error:
        raise StackError(
            f"{path} cannot be read: {error.error_count()} errors",
            fix="end the stack's processes by hand (their pids are in it), then remove the file",
        ) from error


def save(root: Path, state: State) -> None:
    """Write the state so that a reader sees the old one or the new one, never half of it."""
    write_private(root / "state.json", state.model_dump_json(indent=2))


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step by one that its owner alone can read."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    partial.replace(path)
