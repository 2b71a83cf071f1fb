"""``replank events``: look at what flows through Kafka, and whether it is what its contracts say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias

import typer
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from rich.markup import escape

from replank.errors import ConfigurationError, DependencyUnavailable
from replank_cli.asking import Token, Url, door
from replank_cli.connection import Kafka, kafka_of
from replank_cli.console import output, print_json, print_table
from replank_cli.validating import Published, Report
from replank_cli.validating import faults as faults_of

Topics: TypeAlias = Annotated[
    list[str] | None, typer.Argument(help="Topics; all replank.* ones if none is given.", show_default=False)
]
Beginning: TypeAlias = Annotated[bool, typer.Option("--beginning", "-b", help="Start at the oldest record.")]
Follow: TypeAlias = Annotated[bool, typer.Option(help="Wait for new records; --no-follow ends at the newest one.")]
Limit: TypeAlias = Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Stop after so many events.")]
Type: TypeAlias = Annotated[str | None, typer.Option("--type", help="Only this CloudEvents type.")]

app = typer.Typer(add_completion=False, help="Look at what flows through Kafka.", no_args_is_help=True)


@app.callback()
def events() -> None:
    """Look at what flows through Kafka."""


@app.command()
def tail(
    topics: Topics = None,
    kafka: Kafka = None,
    beginning: Beginning = False,
    follow: Follow = True,
    limit: Limit = None,
    type_: Type = None,
    key: Annotated[str | None, typer.Option(help="Only this record key.")] = None,
    trace: Annotated[str | None, typer.Option(help="Only events of this trace id.")] = None,
    values: Annotated[bool, typer.Option("--values", help="Show payloads too. They may hold personal data.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print events as they pass: time, topic, type, key, id, trace. Reads in no group: consumers do not notice."""

    async def run() -> None:
        shown = 0
        async with _reading(kafka_of(kafka), topics or [], beginning=beginning) as (consumer, ends):
            async for record in _records(consumer, ends, follow=follow):
                event = _describe(record, values=values)
                if (
                    (type_ is not None and event["type"] != type_)
                    or (key is not None and event["key"] != key)
                    or (trace is not None and event["trace_id"] != trace)
                ):
                    continue
                _print(event, as_json=as_json)
                shown += 1
                if shown == limit:
                    return

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        raise typer.Exit from None


@app.command()
def validate(
    topics: Topics = None,
    kafka: Kafka = None,
    url: Url = None,
    token: Token = None,
    beginning: Beginning = False,
    follow: Follow = True,
    limit: Limit = None,
    type_: Type = None,
    faults: Annotated[int, typer.Option(min=0, help="Show so many faults; all are counted.")] = 20,
    values: Annotated[bool, typer.Option("--values", help="Show what is wrong too. It may be personal data.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
) -> None:
    """Hold events against their contracts as they are published in the vault, and against CloudEvents.

    A contract is taken as it is when the first event of its type comes by. Reads in no group: consumers do not notice.
    Exit status 1 if an event was invalid. An event whose contract the vault does not have is counted as unknown.
    """
    report = Report(keep=faults, values=values)

    async def run() -> None:
        with door(url, token) as asked:
            published = Published(asked)
            await asyncio.to_thread(published.require_vault)
            async with _reading(kafka_of(kafka), topics or [], beginning=beginning) as (consumer, ends):
                async for record in _records(consumer, ends, follow=follow):
                    event_type = _describe(record, values=False)["type"]
                    if type_ is not None and event_type != type_:
                        continue
                    if event_type is not None and not published.knows(event_type):
                        await asyncio.to_thread(published.contract, event_type)
                    contract = None if event_type is None else published.contract(event_type)
                    kept = report.add(record, event_type, faults_of(record, contract), known=contract is not None)
                    if not as_json:
                        _print_faults(kept)
                    if report.events == limit:
                        return

    # Following ends so: what was seen until then is the result.
    with suppress(KeyboardInterrupt):
        asyncio.run(run())
    _print_report(report, as_json=as_json)
    if report.invalid:
        raise typer.Exit(1)


def _print_faults(found: list[dict[str, Any]]) -> None:
    for fault in found:
        output.print(
            f"[cyan]{escape(fault['topic'])}[/][dim]/{fault['partition']}@{fault['offset']}[/] "
            f"[bold]{escape(fault['type'] or '(no CloudEvent)')}[/] "
            f"{fault['part']}{escape(fault['pointer'])}: [red]{escape(fault['rule'])}[/]",
            highlight=False,
        )
        if "value" in fault:
            output.print("  " + json.dumps(fault["value"], ensure_ascii=False), markup=False, highlight=False)


def _print_report(report: Report, *, as_json: bool) -> None:
    if as_json:
        print_json(report.summary())
        return
    if report.faulty > len(report.faults):
        output.print(f"… and {report.faulty - len(report.faults)} more faults", markup=False, highlight=False)
    print_table(
        ("type", "events", "valid", "invalid", "unknown contract"),
        [
            (name, tally.events, tally.valid, tally.invalid, tally.unknown)
            for name, tally in sorted(report.types.items())
        ],
    )


@asynccontextmanager
async def _reading(
    bootstrap: str, topics: list[str], *, beginning: bool
) -> AsyncIterator[tuple[AIOKafkaConsumer, dict[TopicPartition, int]]]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, isolation_level="read_committed", group_id=None
    )
    try:
        try:
            await consumer.start()
            known = await consumer.topics()
            wanted = topics or sorted(name for name in known if name.startswith("replank."))
            described = await _partitions(bootstrap, [name for name in wanted if name in known])
        except (KafkaError, OSError) as error:
            raise DependencyUnavailable(
                "kafka", f"cannot reach Kafka at {bootstrap}: {error}", fix="check --kafka and that the broker runs"
            ) from error
        if missing := sorted(set(wanted) - known):
            raise ConfigurationError(
                f"Kafka at {bootstrap} has no topic {', '.join(missing)}",
                fix=f"it has {', '.join(sorted(known)) or 'none at all'}",
            )
        if not wanted:
            raise ConfigurationError(f"Kafka at {bootstrap} has no replank.* topic yet", fix="name a topic")
        consumer.assign(described)
        ends: dict[TopicPartition, int] = await consumer.end_offsets(described)
        # Not seek_to_beginning: on a topic that was made a moment ago it may wait for ever.
        starts = await consumer.beginning_offsets(described) if beginning else ends
        for partition, start in starts.items():
            consumer.seek(partition, start)
        yield consumer, ends
    finally:
        await consumer.stop()


async def _partitions(bootstrap: str, topics: list[str]) -> list[TopicPartition]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        # An empty list would mean all topics.
        described = await admin.describe_topics(topics) if topics else []
    finally:
        await admin.close()
    return [
        TopicPartition(topic["topic"], partition["partition"])
        for topic in described
        for partition in topic["partitions"]
    ]


async def _records(
    consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int], *, follow: bool
) -> AsyncIterator[ConsumerRecord]:
    # Transaction markers take offsets without being records, so the position tells the end, not the last record.
    while follow or any([await consumer.position(partition) < end for partition, end in ends.items()]):
        for records in (await consumer.getmany(timeout_ms=250)).values():
            for record in records:
                yield record


def _describe(record: ConsumerRecord, *, values: bool) -> dict[str, Any]:
    headers = {name: value.decode(errors="replace") for name, value in record.headers}
    traceparent = headers.get("traceparent", "").split("-")
    described: dict[str, Any] = {
        "time": headers.get("ce_time") or datetime.fromtimestamp(record.timestamp / 1000, UTC).isoformat(),
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "type": headers.get("ce_type"),
        "key": record.key.decode(errors="replace") if record.key is not None else None,
        "id": headers.get("ce_id"),
        "source": headers.get("ce_source"),
        "subject": headers.get("ce_subject"),
        "trace_id": traceparent[1] if len(traceparent) == 4 else None,
    }
    if values:
        described["value"] = _value(record.value)
    return described


def _value(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return json.loads(value)
    except ValueError:
        return value.decode(errors="replace")


def _print(event: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(event)
        return
    output.print(
        f"[dim]{escape(event['time'])}[/] [cyan]{escape(event['topic'])}[/]"
        f"[dim]/{event['partition']}@{event['offset']}[/] [bold]{escape(event['type'] or '(no CloudEvent)')}[/] "
        f"key={escape(str(event['key']))} [dim]id={event['id']} trace={event['trace_id'] or 'none'}[/]",
        highlight=False,
    )
    if "value" in event:
        output.print("  " + json.dumps(event["value"], ensure_ascii=False), markup=False, highlight=False)
