"""Commands that look: what there is, its versions, what differs, who uses it."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Literal

import typer

from replank_cli.asking import Token, Url
from replank_cli.console import output, print_json
from replank_cli.vault import show
from replank_cli.vault.options import STANDARD, Json, Limit, MetadataText, Mode, Named, Number, Tags, metadata_of
from replank_cli.vault.service import vault
from replank_cli.vault.views import Consumer, Difference, Schema, Validity, Version


class Sort(StrEnum):
    """What a listing is sorted by; what begins with ``-`` has the greatest first."""

    NAME = "name"
    NAME_DOWN = "-name"
    UPDATED = "updated_at"
    UPDATED_DOWN = "-updated_at"
    CREATED = "created_at"
    CREATED_DOWN = "-created_at"
    SIZE = "size"
    SIZE_DOWN = "-size"
    FIELDS = "field_count"
    FIELDS_DOWN = "-field_count"


def list_(
    prefix: Annotated[str | None, typer.Argument(help="Only names that begin so.", show_default=False)] = None,
    query: Annotated[
        str | None, typer.Option("--query", "-q", help='Words in names, descriptions, tags and fields: "zip -city".')
    ] = None,
    tag: Tags = None,
    owner: Annotated[str | None, typer.Option(help="Only theirs: user:ada.")] = None,
    kind: Annotated[Literal["schema", "document"] | None, typer.Option()] = None,
    status: Annotated[Literal["active", "deleted"], typer.Option()] = "active",
    metadata: MetadataText = None,
    sort: Annotated[Sort, typer.Option(help="With - before it: the greatest first.")] = Sort.NAME,
    limit: Limit = 100,
    mode: Mode = STANDARD,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """What there is. No content is read for it, however large the vault."""
    contained = metadata_of(metadata)
    with vault(url, token, mode) as service:
        items = service.pages(
            "",
            limit=limit,
            name=prefix,
            q=query,
            tag=tag,
            owner=owner,
            kind=kind,
            status=status,
            metadata=None if contained is None else json.dumps(contained),
            sort=sort.value,
        )
    if as_json:
        print_json(items)
        return
    if not items:
        output.print("no schemas")
        return
    show.schemas([Schema.model_validate(item) for item in items])
    if len(items) == limit:
        output.print(f"… there may be more than these {limit}: --limit shows them", highlight=False)


def show_(named: Named, mode: Mode = STANDARD, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """All that is known of a schema but its content, also of a deleted one by its id."""
    with vault(url, token, mode) as service:
        answer = service.found(named)
    if as_json:
        print_json(answer)
    else:
        output.print(show.schema(Schema.model_validate(answer)))


def versions(
    named: Named, limit: Limit = 100, mode: Mode = STANDARD, url: Url = None, token: Token = None, as_json: Json = False
) -> None:
    """The versions of a schema, the latest first."""
    with vault(url, token, mode) as service:
        items = service.pages(f"/{service.schema(named).id}/versions", limit=limit)
    if as_json:
        print_json(items)
    else:
        show.versions([Version.model_validate(item) for item in items])


def diff(
    named: Named,
    older: Annotated[int, typer.Argument(min=1, metavar="A")],
    newer: Annotated[int, typer.Argument(min=1, metavar="B")],
    mode: Mode = STANDARD,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """What differs between two versions, as JSON Pointers, and whether they are compatible."""
    with vault(url, token, mode) as service:
        answer = service.get(f"/{service.schema(named).id}/diff", **{"from": older, "to": newer})
    if as_json:
        print_json(answer)
    else:
        show.difference(Difference.model_validate(answer))


def validate(
    named: Named,
    version: Number = None,
    mode: Mode = STANDARD,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Whether a content is a valid JSON Schema; it does not have to be. Exit status 1 if it is not."""
    with vault(url, token, mode) as service:
        schema = service.schema(named)
        number = version or schema.version
        answer = service.ask("POST", f"/{schema.id}/versions/{number}/validate")
    found = Validity.model_validate(answer)
    if as_json:
        print_json(answer)
    else:
        verdict = "is a valid JSON Schema" if found.valid else "is no valid JSON Schema"
        said = [f"{schema.name} version {number} {verdict} of {found.draft or 'no known draft'}"]
        show.lines([*said, *(f"  {place.path or '(the whole)'}: {place.problem}" for place in found.problems)])
    if not found.valid:
        raise typer.Exit(1)


def consumers(named: Named, mode: Mode = STANDARD, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Who was seen using a schema lately: they are who a delete or an incompatible version would break."""
    with vault(url, token, mode) as service:
        answer = service.get(f"/{service.schema(named).id}/consumers")["consumers"]
    if as_json:
        print_json(answer)
    elif not answer:
        output.print("nobody was seen using it")
    else:
        show.consumers([Consumer.model_validate(one) for one in answer])
