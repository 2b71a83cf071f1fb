"""``replank vault performance-test``: how long uploads and listings take in the pattern that a mode is in."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import uuid4

import typer
from pydantic import BaseModel, ConfigDict, ValidationError

from replank.contracts.schema import VaultMode
from replank.errors import ConfigurationError
from replank_cli.asking import Token, Url
from replank_cli.console import errors, output, print_json, print_table
from replank_cli.vault.options import STANDARD, Json, Mode
from replank_cli.vault.service import Vault, vault
from replank_cli.vault.views import Pattern

_FIELDS: Final = (10, 50, 200)
_WARM: Final = 3
_AT_ONCE: Final = 500
_MOST_LEFT: Final = 100_000
#: Phases in which only the one pattern is written and read; in the others both are written.
_OLD: Final = frozenset({"planned", "rolled_back"})
_NEW: Final = frozenset({"new", "archived"})


class Times(BaseModel):
    """How long something took, in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50: float
    p95: float
    runs: int


class Measured(BaseModel):
    """One run of the test: uploads by their number of fields, listings by the number of schemas that they list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: VaultMode
    pattern: str
    upload: dict[int, Times]
    list: dict[int, Times]


def performance_test(
    schemas: Annotated[list[int] | None, typer.Option(min=1, max=10_000, help="List so many; may be repeated.")] = None,
    runs: Annotated[int, typer.Option(min=5, max=1000, help="How often each is measured.")] = 20,
    listed_fields: Annotated[int, typer.Option(min=1, max=5000, help="The fields of each schema that is listed.")] = 50,
    save: Annotated[Path | None, typer.Option(dir_okay=False, help="Keep the measurement in this file.")] = None,
    against: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="Show kept measurements beside it.")
    ] = None,
    mode: Mode = STANDARD,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Measure uploads of 10, 50 and 200 fields and listings of 10, 100 and 1,000 schemas, one request after the other.

    A mode is in one pattern at a time. To see both, measure with --save before `migrate`, and --against it afterwards.
    What is made for that, below performance-test/, is deleted at the end, softly, as everything in the vault is.
    """
    kept = [_kept(path) for path in against or ()]
    with vault(url, token, mode) as service:
        pattern = _pattern(Pattern.model_validate(service.get("/pattern")))
        scratch = f"performance-test/{uuid4().hex[:12]}"
        try:
            measured = Measured(
                mode=mode,
                pattern=pattern,
                upload=_uploads(service, scratch, runs),
                list=_listings(service, scratch, sorted(set(schemas or (10, 100, 1000))), listed_fields, runs),
            )
        except KeyboardInterrupt:
            raise typer.Exit(1) from None
        finally:
            _delete(service, scratch)
    if save is not None:
        save.write_text(measured.model_dump_json(indent=1) + "\n")
    if as_json:
        print_json([one.model_dump(mode="json") for one in (*kept, measured)])
        return
    columns = [*kept, measured]
    _table("Upload", "fields", columns, lambda one: one.upload)
    output.print()
    _table("List", "schemas", columns, lambda one: one.list)


def _kept(path: Path) -> Measured:
    try:
        return Measured.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigurationError(f"{path} is no kept measurement", fix="make one with --save") from error


def _pattern(found: Pattern) -> str:
    return "old pattern" if found.phase in _OLD else "new pattern" if found.phase in _NEW else f"both ({found.phase})"


def _uploads(service: Vault, scratch: str, runs: int) -> dict[int, Times]:
    found = {}
    for fields in _FIELDS:
        errors.print(f"uploading {runs} schemas of {fields} fields", highlight=False)

        def upload(fields: int = fields) -> None:
            _upload(service, f"{scratch}/upload/{fields}/{uuid4().hex}", fields)

        found[fields] = _measured(upload, runs)
    return found


def _listings(service: Vault, scratch: str, counts: Sequence[int], fields: int, runs: int) -> dict[int, Times]:
    found, there = {}, 0
    for count in counts:
        errors.print(f"listing {count:,} schemas {runs} times", highlight=False)
        for number in range(there, count):
            _upload(service, f"{scratch}/list/{number:05}", fields)
        there = count

        def list_all(count: int = count) -> None:
            items = service.pages("", limit=count + 1, name=f"{scratch}/list/")
            if len(items) != count:
                raise ConfigurationError(
                    f"{len(items)} of {count} schemas were listed", fix="look at the service's log"
                )

        found[count] = _measured(list_all, runs)
    return found


def _upload(service: Vault, name: str, fields: int) -> None:
    service.ask("POST", "/upload", _schema(fields), query={"name": name})


def _schema(fields: int) -> dict[str, Any]:
    """A schema of so many fields that the vault has not seen."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:uuid:{uuid4()}",
        "type": "object",
        "properties": {
            f"field{number:03}": {
                "type": "string",
                "description": f"What the field number {number} of this schema is about.",
                "maxLength": 100 + number,
            }
            for number in range(fields)
        },
    }


def _measured(do: Callable[[], None], runs: int) -> Times:
    for _ in range(_WARM):
        do()
    took = []
    for _ in range(runs):
        began = time.perf_counter()
        do()
        took.append(time.perf_counter() - began)
    return Times(p50=statistics.median(took), p95=statistics.quantiles(took, n=20)[-1], runs=runs)


def _delete(service: Vault, scratch: str) -> None:
    ids = [item["id"] for item in service.pages("", limit=_MOST_LEFT, name=f"{scratch}/")]
    errors.print(f"deleting {len(ids):,} schemas", highlight=False)
    for first in range(0, len(ids), _AT_ONCE):
        service.ask("POST", "/bulk", {"action": "delete", "ids": ids[first : first + _AT_ONCE], "force": True})


def _table(title: str, what: str, columns: Sequence[Measured], part: Callable[[Measured], Mapping[int, Times]]) -> None:
    head = [what]
    for one in columns:
        head += [f"{one.pattern}, {one.mode}: p50", "p95"]
    if len(columns) > 1:
        head.append("the last against the first")
    counts = sorted({count for one in columns for count in part(one)})
    print_table(head, [list(_row(count, [part(one).get(count) for one in columns])) for count in counts], title=title)


def _row(count: int, times: Sequence[Times | None]) -> Iterator[str]:
    yield f"{count:,}"
    for one in times:
        yield f"{1000 * one.p50:,.1f} ms" if one else ""
        yield f"{1000 * one.p95:,.1f} ms" if one else ""
    first, last = times[0], times[-1]
    if len(times) > 1 and first and last:
        change = 100 * (1 - last.p50 / first.p50)
        yield f"{abs(change):.0f} % {'faster' if change >= 0 else 'slower'}"
