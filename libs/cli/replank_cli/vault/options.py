"""What several commands are given."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, TypeAlias

import typer

from replank.contracts.schema import VaultMode
from replank.errors import ConfigurationError

Mode: TypeAlias = Annotated[
    VaultMode, typer.Option("--mode", envvar="REPLANK_VAULT_MODE", help="Which of the two vaults.")
]
Named: TypeAlias = Annotated[str, typer.Argument(metavar="NAME|ID", help="A schema's name, or its id.")]
Number: TypeAlias = Annotated[
    int | None, typer.Option("--version", min=1, help="Of this version; the current one otherwise.", show_default=False)
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="For programs: what the service answered, as JSON.")]
Wait: TypeAlias = Annotated[
    bool, typer.Option("--wait", help="Follow the job to its end. Ctrl-C leaves it to itself, without harm.")
]
Timeout: TypeAlias = Annotated[
    float | None,
    typer.Option("--timeout", min=0, help="With --wait: give up after so many seconds.", show_default=False),
]
Limit: TypeAlias = Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000)]
MetadataText: TypeAlias = Annotated[
    str | None, typer.Option("--metadata", help='A JSON object: {"team": "billing"}.', show_default=False)
]
Tags: TypeAlias = Annotated[list[str] | None, typer.Option("--tag", help="May be given many times.")]

STANDARD: Final[VaultMode] = "standard"


def metadata_of(text: str | None) -> dict[str, Any] | None:
    """The object that ``--metadata`` gives. Raises `ConfigurationError` where it is none."""
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigurationError("--metadata is no JSON object", fix="""give one such as '{"team": "billing"}'""")
    return found
