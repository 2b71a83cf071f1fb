"""What a request costs that does not depend on the machine: statements, and operations on the object store."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
from prometheus_client import REGISTRY

from bench.postgres import RESETS, Server
from bench.vault.samples import of_fields
from bench.vault.stand import JSON_CONTENT, NEW, PREFIXES, RIGHTS, USER, Door, Place, answered, placed
from replank.telemetry.metrics import OBJECTS_SECONDS
from replank.testing.services import Issuer, basics, http_alone, playing_rights
from replank_schema.application import compose
from replank_schema.settings import SchemaSettings

_TIMES: Final = 20
_WARM_UP: Final = 2
"""The first times open connections and try what the object store can do, once in the life of a process."""
_FIELDS: Final = 50


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one request, on average."""

    statements: float
    """In the service's database, those that begin and end transactions included."""
    connections: float
    """How often a connection was taken from a pool, each of which is another round trip when it is given back."""
    objects: float
    """Operations on the object store."""


async def costs(postgres: Server, s3: tuple[str, str, str], kafka: str) -> Mapping[str, Cost]:
    """What each kind of request costs a service that does nothing else: no relay, consumers and jobs."""
    async with placed(postgres, s3) as place, _alone(place, kafka) as client:
        caller = _Caller(Door(client, PREFIXES[NEW]))
        # First what publishes, so that there is something to list and to read.
        kinds: Mapping[str, Callable[[int], Awaitable[httpx.Response]]] = {
            "upload": caller.upload,
            "upload_known": caller.refer,
            "version": caller.publish,
            "list": caller.page,
            "list_filtered": caller.filtered_page,
            "get": caller.get,
            "content": caller.content,
            "range": caller.range,
        }
        return {kind: await _count(postgres, place, ask) for kind, ask in kinds.items()}


async def _count(postgres: Server, place: Place, ask: Callable[[int], Awaitable[httpx.Response]]) -> Cost:
    for number in range(_WARM_UP):
        await ask(number)
    before = await postgres.counters(place.dsn)
    resets_before, objects_before = await postgres.resets(place.dsn), _object_operations()
    for number in range(_WARM_UP, _WARM_UP + _TIMES):
        await ask(number)
    objects = _object_operations() - objects_before
    resets = await postgres.resets(place.dsn) - resets_before
    statements = (await postgres.counters(place.dsn) - before).statements - resets
    return Cost(statements / _TIMES, resets / len(RESETS) / _TIMES, objects / _TIMES)


def _object_operations() -> float:
    """How many operations on object stores this process has ended, of all buckets and kinds."""
    return sum(
        sample.value
        for metric in REGISTRY.collect()
        if metric.name == OBJECTS_SECONDS.name
        for sample in metric.samples
        if sample.name.endswith("_count")
    )


@asynccontextmanager
async def _alone(place: Place, kafka: str) -> AsyncIterator[httpx.AsyncClient]:
    with TemporaryDirectory(prefix="replank-bench-") as folder:
        issuer = Issuer(Path(folder))
        async with playing_rights(*RIGHTS) as rights:
            given = basics(issuer, dsn=place.dsn, kafka=kafka, name="schema", authz_url=rights.url)
            settings = SchemaSettings.model_validate({**given, "s3_url": place.s3_url, "vault": dict(place.modes)})
            async with http_alone(compose(settings), issuer.token(USER)) as client:
                yield client


class _Caller:
    """Asks each kind of request about the ``number``-th schema."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._schemas: list[dict[str, Any]] = []

    async def upload(self, number: int) -> httpx.Response:
        answer = await self._door.upload(f"counted/{number}", of_fields(_FIELDS, number))
        self._schemas.append(answer.json())
        return answer

    async def refer(self, number: int) -> httpx.Response:
        sha256 = hashlib.sha256(of_fields(_FIELDS, number)).hexdigest()
        given = {"name": f"again/{number}", "sha256": sha256}
        return answered(await self._door.client.post(self._door.prefix, json=given), 201)

    async def publish(self, number: int) -> httpx.Response:
        schema = self._schemas[number]
        answer = await self._door.client.post(
            f"{self._door.prefix}/{schema['id']}/versions",
            content=of_fields(_FIELDS, f"version {number}"),
            headers={**JSON_CONTENT, "if-match": f'"{schema["revision"]}"'},
        )
        return answered(answer, 201)

    async def page(self, _: int) -> httpx.Response:
        return await self._door.page(sort="-updated_at")

    async def filtered_page(self, _: int) -> httpx.Response:
        return await self._door.page(name="counted/", kind="schema", metadata="{}", q="counted")

    async def get(self, number: int) -> httpx.Response:
        return await self._get(number, "")

    async def content(self, number: int) -> httpx.Response:
        return await self._get(number, "/content")

    async def range(self, number: int) -> httpx.Response:
        return await self._get(number, "/content", range="bytes=7-9")

    async def _get(self, number: int, part: str, **headers: str) -> httpx.Response:
        path = f"{self._door.prefix}/{self._schemas[number]['id']}{part}"
        return answered(await self._door.client.get(path, headers=headers), 206 if headers else 200)
