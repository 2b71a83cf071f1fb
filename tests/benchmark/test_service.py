"""The benchmark service alone, on real servers: everybody else is played by the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio

from replank.contracts.alerts import AlertRaised
from replank.contracts.benchmark import BaselineRecorded
from replank.contracts.schema import MigrationPlanned, Source, plan_sha256
from replank.errors import ConfigurationError
from replank.testing import eventually
from replank.testing.services import Issuer, Rights, basics, emit, events_of, http_alone, living, playing_rights
from replank_benchmark.application import compose
from replank_benchmark.settings import BenchmarkSettings

Configure = Callable[..., BenchmarkSettings]


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


@pytest_asyncio.fixture
async def rights() -> AsyncIterator[Rights]:
    async with playing_rights(("user:ada", "plan", "system:replank")) as playing:
        yield playing


@pytest.fixture
def configure(kafka: str, issuer: Issuer, rights: Rights) -> Configure:
    def on(dsn: str, **more: Any) -> BenchmarkSettings:
        given = basics(issuer, dsn=dsn, kafka=kafka, name="benchmark", authz_url=rights.url)
        return BenchmarkSettings.model_validate({**given, **more})

    return on


def planned(**source: str) -> MigrationPlanned:
    return MigrationPlanned(
        migration_id=uuid4(),
        name="orders",
        owner="user:ben",
        source=Source.model_validate(source),
        plan={},
        plan_sha256=plan_sha256({}),
        planned_by="user:ada",
        planned_at=datetime.now(UTC),
    )


async def test_planned_migrations_get_baselines_and_what_cannot_be_measured_says_so(
    database: asyncpg.Pool, postgres_dsn: str, configure: Configure, kafka: str, issuer: Issuer
) -> None:
    # Its own database stands for the target: it has a table with known rows.
    await database.execute("create table kv as select n as id from generate_series(1, 42) as n")
    await database.execute("analyze kv")
    settings = configure(
        postgres_dsn,
        targets={"shop": postgres_dsn, "dead": "postgresql://postgres@127.0.0.1:1/none"},
        target_attempts=2,
    )
    good, unknown, dead = (
        planned(target="shop", table="kv"),
        planned(target="nowhere", table="kv"),
        planned(target="dead", table="kv"),
    )
    wanted = {migration.migration_id for migration in (good, unknown, dead)}
    async with living(compose(settings), issuer.token()) as client:
        for migration in (unknown, dead, good):
            await emit(kafka, migration, key=str(migration.migration_id))
        recorded = await events_of(kafka, BaselineRecorded, lambda event: event.migration_id in wanted, count=3)
        said = {event.migration_id: event for event in recorded}
        assert (said[good.migration_id].status, said[good.migration_id].rows_estimated) == ("captured", 42)
        assert said[unknown.migration_id].status == "failed"
        assert "'nowhere' is not known" in (said[unknown.migration_id].reason or "")
        assert "'dead' does not answer" in (said[dead.migration_id].reason or "")
        subjects = {f"migration:{migration.migration_id}" for migration in (unknown, dead)}
        alerts = await events_of(kafka, AlertRaised, lambda event: event.subject in subjects, count=2)
        assert {alert.subject for alert in alerts} == subjects

        async def is_shown() -> Any:
            answer = await client.get(f"/v1/baselines/{good.migration_id}")
            assert answer.status_code == 200, answer.text
            return answer.json()

        shown = await eventually(is_shown, "the baseline is shown")
        assert (shown["status"], shown["rows_estimated"], shown["relations"][0]["name"]) == ("captured", 42, "kv")
        assert shown["explain"]["Plan"]["Total Cost"] == shown["plan_cost"]
        failed = (await client.get(f"/v1/baselines/{unknown.migration_id}")).json()
        assert (failed["status"], failed["explain"], failed["relations"]) == ("failed", None, [])


async def test_bad_requests_get_clear_problems(untouched_dsn: str, configure: Configure, issuer: Issuer) -> None:
    async with http_alone(compose(configure(untouched_dsn)), issuer.token()) as client:
        missing = await client.get(f"/v1/baselines/{uuid4()}")
        assert (missing.status_code, missing.json()["type"]) == (404, "urn:replank:problem:baseline-not-found")
        malformed = await client.get("/v1/baselines/not-an-id")
        assert (malformed.status_code, malformed.json()["errors"][0]["field"]) == (422, "path.migration_id")
        assert (await client.post(f"/v1/baselines/{uuid4()}")).status_code == 405
        eve = {"authorization": f"Bearer {issuer.token('user:eve')}"}
        assert (await client.get(f"/v1/baselines/{uuid4()}", headers=eve)).status_code == 403
        for token in ("", "Bearer x", f"Bearer {issuer.token(iss='other')}"):
            answer = await client.get(f"/v1/baselines/{uuid4()}", headers={"authorization": token})
            assert answer.status_code == 401


@pytest.mark.parametrize("missing", ["postgres", "auth-cache"])
async def test_a_dead_dependency_is_named(
    untouched_dsn: str, configure: Configure, issuer: Issuer, missing: str
) -> None:
    dead = {
        "postgres": configure("postgresql://postgres@127.0.0.1:1/none"),
        "auth-cache": configure(untouched_dsn, authz_url="http://127.0.0.1:1"),
    }[missing]
    async with http_alone(compose(dead), issuer.token()) as client:
        answer = await client.get(f"/v1/baselines/{uuid4()}")
    assert (answer.status_code, answer.json()["dependency"]) == (503, missing)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TARGETS", '{"shop": "mysql://secret@x"}'),
        ("TARGETS", '{"Not A Name": "postgresql://secret@x"}'),
        ("TARGETS", "secret"),
        ("TARGET_TIMEOUT", "secret"),
        ("KAFKA", "secret"),
    ],
)
def test_a_wrong_setting_is_named_and_never_shown(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    for name, good in {
        "DSN": "postgresql://x/x",
        "KAFKA": "x:9092",
        "AUTH_ISSUER": "x",
        "AUTH_AUDIENCE": "x",
        "AUTH_JWKS": "x",
        "AUTHZ_URL": "http://x",
        "SERVICE_TOKEN_FILE": "x",
        variable: value,
    }.items():
        monkeypatch.setenv(f"REPLANK_BENCHMARK_{name}", good)
    with pytest.raises(ConfigurationError, match=f"REPLANK_BENCHMARK_{variable}") as refusal:
        BenchmarkSettings.load()
    assert "secret" not in str(refusal.value)
