"""``replank demo``: the life of a migration, told on the running stack, with proof of each step."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from replank_cli.demo.places import Places
from replank_cli.demo.story import tell

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    records: Annotated[int, typer.Option(min=1000, help="How many records the shop has.")] = 200_000,
    rate: Annotated[float, typer.Option(min=1, help="Requests a second of its live traffic.")] = 30.0,
) -> None:
    """Move the storefront's key-value store to tables under live traffic, and back, and forward again.

    Needs a running stack (`make up`). May be repeated: what an earlier run left in the shop is removed first. Exit
    status 1 when a request failed, an answer was wrong, or the two stores disagree.
    """
    verdict = asyncio.run(tell(Places.from_environment(), records=records, rate=rate))
    if verdict.problems:
        raise typer.Exit(1)
