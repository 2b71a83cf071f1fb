"""``replank trace``: one flow through all services, drawn in the terminal."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated

import typer

from replank.errors import ConfigurationError
from replank.telemetry.jaeger import Jaeger, waterfall
from replank_cli.console import output, print_table

app = typer.Typer(
    add_completion=False, help="One flow through all services, drawn in the terminal.", no_args_is_help=True
)

Url = Annotated[
    str | None, typer.Option("--jaeger", envvar="REPLANK_JAEGER_URL", help="Jaeger's query API.", show_default=False)
]


def jaeger_of(url: str | None) -> str:
    """The query API that the option names. Raises `ConfigurationError` if it names none."""
    if url:
        return url
    raise ConfigurationError("no Jaeger is named", fix='give --jaeger, or run eval "$(make env)" with Jaeger up')


@app.command()
def show(trace_id: Annotated[str, typer.Argument(help="32 hexadecimal digits.")], jaeger: Url = None) -> None:
    """Draw one trace as a waterfall."""
    if not re.fullmatch(r"[0-9a-f]{32}", trace_id.lower()):
        raise ConfigurationError(f"{trace_id!r} is not a trace id", fix="give 32 hexadecimal digits")

    async def run() -> None:
        async with Jaeger(jaeger_of(jaeger)) as client:
            trace = await client.trace(trace_id.lower(), within=2.0)
        output.print(waterfall(trace, width=max(output.width, 80)), markup=False, highlight=False)

    asyncio.run(run())


@app.command("list")
def list_(
    service: Annotated[str, typer.Argument(help="A service that took part.")],
    operation: Annotated[str | None, typer.Option(help="Only traces with a span of this name.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000)] = 20,
    jaeger: Url = None,
) -> None:
    """The newest traces in which a service took part."""

    async def run() -> None:
        async with Jaeger(jaeger_of(jaeger)) as client:
            found = await client.search(service, operation=operation, limit=limit)
        print_table(
            ("trace", "root", "services", "spans", "ms"),
            (
                (
                    trace.trace_id,
                    trace.roots[0],
                    len(trace.services),
                    len(trace.spans),
                    f"{(max(span.end for span in trace.spans) - min(span.start for span in trace.spans)) / 1000:.1f}",
                )
                for trace in found
            ),
        )

    asyncio.run(run())
