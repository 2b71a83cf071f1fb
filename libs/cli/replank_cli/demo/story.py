"""The story itself, chapter by chapter."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx

from replank.errors import ReplankError
from replank.migrate.mapping import load
from replank_cli.demo import flow, shop
from replank_cli.demo.calls import Calls, until
from replank_cli.demo.life import Life
from replank_cli.demo.places import Places
from replank_cli.demo.report import Report, Verdict, counts, latencies, print_table
from replank_cli.demo.shop import Planted
from replank_cli.demo.traffic import Shift, Traffic, seed
from replank_cli.migrate.service import Schema, schema
from replank_cli.migrate.views import AT_REST, Progress, Summary

_OWNER: Final = "user:ada"
_SOURCE: Final = "storefront-kv"
_TARGET: Final = "storefront"
_ENDPOINTS: Final = (
    "client.report", "event.counts", "order.get", "product.get", "product.list", "product.search", "site.list",
    "site.offer",
)  # fmt: skip
_COMPARED_READS: Final = 100
_MEASURED_REQUESTS: Final = 250
_BETWEEN_STEPS: Final = 30
_MIGRATIONS: Final = 100
# Bounds on what is waited for, in seconds: generous, since machines do other things too.
_SOON: Final = 60.0
_LONG: Final = 300.0
_FOLLOWS_WITHIN: Final = 20.0


async def tell(places: Places, *, records: int, rate: float) -> Verdict:
    """Tell the story. Raises `ReplankError` where it cannot go on; what is wrong otherwise is in the verdict."""
    headers = {"authorization": f"Bearer {places.token}"}
    with (
        tempfile.TemporaryDirectory(prefix="replank-demo-") as folder,
        schema(places.urls["schema"], places.token) as s,
    ):
        async with (
            # Without TLS: reading the system's certificates takes longer than a request.
            httpx.AsyncClient(headers=headers, timeout=60.0, verify=False) as client,  # noqa: S501
            Traffic(places, Path(folder), rate=rate) as traffic,
        ):
            story = _Story(places, Calls(client), s, traffic, Path(folder))
            try:
                return await story.tell(records)
            except ReplankError:
                await story.break_off()
                raise


class _Story:
    def __init__(self, places: Places, calls: Calls, service: Schema, traffic: Traffic, folder: Path) -> None:
        self._places = places
        self._calls = calls
        self._service = service
        self._traffic = traffic
        self._folder = folder
        self._mapping = load(places.mapping.read_text())
        self._report = Report()
        self._verdict = Verdict()

    async def tell(self, records: int) -> Verdict:
        planted = await self._open_shop(records)
        before = await shop.timed(self._calls, self._places.shop)
        shift = await self._traffic.begin("before", alone=True)
        life = await self._plan()
        shift = await self._hand_over(shift, "first")
        await self._carry(life, records)
        await self._verify(life, planted)
        trace_id = await self._order()
        await self._move_reads(life)
        await self._move_writes(life)
        shift = await self._go_back(life, shift)
        await self._start_again(life, records, planted)
        await self._count(shift, planted)
        shift = await self._complete(life)
        await self._traffic.end(shift)
        await self._account(before)
        await self._draw_order(life, trace_id)
        self._conclude(life)
        return self._verdict

    async def break_off(self) -> None:
        """The story cannot go on: say at least what the traffic saw."""
        for shift in self._traffic.shifts:
            if shift.process.returncode is None:
                with suppress(ReplankError):
                    await self._traffic.end(shift)
        self._say_faults()

    # --- before ---

    async def _open_shop(self, records: int) -> Planted:
        self._report.chapter("A shop keeps everything in one key-value table")
        await self._take_back_former_runs()
        path = self._folder / "planted.json"
        began = time.monotonic()
        filled = await seed(self._places, records, path)
        planted = Planted.read(path)
        self._report.say(
            f"{filled['records']:,} records in {time.monotonic() - began:.1f} s, "
            f"{sum(filled['planted'].values()):,} of them dirty in {len(filled['planted'])} ways; "
            f"{len(planted.rejected):,} cannot become rows"
        )
        return planted

    async def _take_back_former_runs(self) -> None:
        for found in self._service.pages("", limit=_MIGRATIONS, name=self._mapping.name):
            former = Summary.model_validate(found)
            if former.phase == "retired":
                # Its reads stay with the tables, and no command leads back.
                raise ReplankError(
                    f"an earlier run's migration was retired ({former.id}): this shop lives on its tables for good",
                    fix="`make down clean`, then `make demo`: the story begins with a new shop",
                )
            if former.phase not in AT_REST:
                self._report.say(
                    f"an earlier run left its migration {former.phase}: it is taken back, its tables dropped"
                )
                if former.phase == "completed":
                    # The key-value store has heard of nothing since: it is told sooner that all is gone.
                    await shop.empty_tables(self._places, self._mapping)
                await Life(self._service, former.id, former.name).roll_back(within=_LONG)
        if left := await shop.size(self._places):
            self._report.say(f"{left:,} records of an earlier run are removed")
            await shop.empty(self._places)

    # --- the plan, through all services ---

    async def _plan(self) -> Life:
        self._report.chapter("A request to schema becomes a row and an event, in one transaction")
        migrations = f"{self._places.urls['schema']}/v1/migrations"
        began = time.monotonic()
        response = await self._calls.post(
            migrations,
            {
                "owner": _OWNER,
                "source": _SOURCE,
                "target": _TARGET,
                "mapping": self._places.mapping.read_text(),
                "options": {"endpoints": _ENDPOINTS},
                "settings": {"min_compared_reads": _COMPARED_READS},
            },
        )
        planned, trace_id = response.json(), response.headers["x-trace-id"]
        self._report.say(f"migration {planned['id']} ({planned['name']}) is {planned['phase']}: {_SOURCE} -> {_TARGET}")
        self._report.say(f"plan sha256 {planned['plan_sha256']}; trace {trace_id}")

        self._report.chapter("Three services handle the event, and schema hears of each effect")
        ready = await until(
            lambda: self._calls.get(f"{migrations}/{planned['id']}"),
            lambda view: view["ready"] or any(item["state"] == "failed" for item in view["readiness"]),
            what="the migration to be ready",
            within=_SOON,
        )
        took = time.monotonic() - began
        print_table(
            ("needed", "state", "detail", "by event"),
            ((item["item"], item["state"], item["detail"], item["event_id"]) for item in ready["readiness"]),
        )
        if not ready["ready"]:
            raise ReplankError("the migration cannot become ready", fix="`make logs S=…` of the service that failed")
        self._report.say(f"ready {took:.2f} s after the request")

        self._report.chapter("Each effect, asked of the service that owns it")
        print_table(("service", "effect"), await self._effects(ready))

        self._report.chapter("One trace ties them together")
        whole = await flow.draw(self._report, self._places.jaeger, trace_id, flow.is_whole_plan)
        self._verdict.demand(whole, "the trace of the plan did not come whole")
        return Life(self._service, planned["id"], planned["name"])

    async def _effects(self, migration: dict[str, Any]) -> list[tuple[str, str]]:
        urls, identifier = self._places.urls, migration["id"]
        key = {"user": _OWNER, "relation": "owner", "object": f"migration:{identifier}"}
        check = (await self._calls.post(f"{urls['auth-cache']}/stores/replank/check", {"tuple_key": key})).json()
        baseline = await self._calls.get(f"{urls['benchmark']}/v1/baselines/{identifier}")
        manifest = await self._calls.get(f"{urls['archiver']}/v1/manifests/{identifier}")
        same = manifest["sha256"] == migration["plan_sha256"]
        self._verdict.demand(check["allowed"], f"auth-cache does not know {_OWNER} as the owner")
        self._verdict.demand(same, "the plan that archiver keeps is another one")
        size = f"about {baseline['rows_estimated']:,} rows, {baseline['bytes_total'] / 1e6:.0f} MB"
        return [
            ("auth-cache", f"{_OWNER} is owner of the migration: {check['allowed']}"),
            ("benchmark", f"baseline {baseline['status']}: {size}"),
            (
                "archiver",
                f"plan kept and read back: {manifest['bucket']}/{manifest['object_key']}, sha256 same: {same}",
            ),
        ]

    # --- forward ---

    async def _carry(self, life: Life, records: int) -> None:
        self._report.chapter("capturing: from now on every write reaches the tables, by outbox and Kafka")
        await self._capture(life)
        self._report.say(self._traffic.pulse())

        self._report.chapter("backfilling: what was there before")
        await self._backfill(life, records)
        self._report.say(self._traffic.pulse())

    async def _verify(self, life: Life, planted: Planted) -> None:
        self._report.chapter("verifying: everything is compared, and what cannot be a row is named")
        await self._compare(life)
        found = await life.rejects()
        reasons = Counter(f"{reject.path or 'key'}: {reject.reason}" for reject in found)
        print_table(("rejected", "why"), ((f"{count:,}", reason) for reason, count in reasons.most_common()))
        odd = planted.rejected.symmetric_difference(reject.key for reject in found)
        self._verdict.demand(not odd, f"{len(odd)} records were rejected, or not, against what was planted")

        await shop.mend(self._places, planted)
        await self._accept(life, planted)
        self._report.say(f"{len(planted.mendable):,} mended in the live store and carried over")

    async def _order(self) -> str:
        """A customer places an order, whose way is followed; its trace."""
        trace_id, headers = flow.new_trace()
        await self._calls.post(f"{self._places.shop}/v1/clients/c00001/orders", shop.order(), headers=headers)
        return trace_id

    async def _move_reads(self, life: Life) -> None:
        self._report.chapter("shadow_reads: the key-value store answers, and the tables are asked the same")
        await self._compare_reads(life)
        self._report.say(self._traffic.pulse())

        self._report.chapter("new_with_fallback: the tables answer for 10, 50, 100 per cent of the keys")
        await life.advance("new_with_fallback", within=_SOON, rollout=10.0)
        for rollout in (50.0, 100.0):
            await self._some_traffic()
            await life.reads("new_with_fallback", rollout)
        await self._some_traffic()
        self._report.say(self._traffic.pulse())

    async def _move_writes(self, life: Life) -> None:
        self._report.chapter("new_only: writes go to the tables, and flow back to the key-value store")
        await self._flip(life)

    # --- back, and forward again ---

    async def _go_back(self, life: Life, shift: Shift) -> Shift:
        self._report.chapter("Rollback in the middle, all the way: the key-value store has the writes, the tables go")
        began = time.monotonic()
        await life.roll_back(within=_LONG)
        took, held = time.monotonic() - began, await self._held(life)
        self._report.say(f"rolled back {took:.1f} s after it was asked for; writers waited {held} s for that")
        following = await self._hand_over(shift, "second")
        await self._audit("kv", [shift])
        self._report.say(self._traffic.pulse())
        return following

    async def _start_again(self, life: Life, records: int, planted: Planted) -> None:
        self._report.chapter("Started again: all of it once more")
        await self._capture(life)
        await self._backfill(life, records)
        await self._compare(life)
        await self._accept(life, planted)
        await self._compare_reads(life)
        await life.advance("new_with_fallback", within=_SOON)
        await self._flip(life)

    async def _count(self, shift: Shift, planted: Planted) -> None:
        self._report.chapter("Both stores counted to the last record")
        # The shop is quiet for a moment: only then can the counts of two databases be held against each other.
        await self._traffic.end(shift)
        await self._audit("tables", self._traffic.ended)
        # It follows the tables: what was written last may still be on its way to it.
        await self._audit("kv", self._traffic.ended, within=_FOLLOWS_WITHIN)
        records, rows = await shop.count(self._places, self._mapping, planted.lost)
        print_table(("entity", "key-value store", "tables", ""), counts(records, rows))
        self._verdict.demand(records == rows, "the two stores hold different numbers of records")

    async def _complete(self, life: Life) -> Shift:
        self._report.chapter("completed: constraints are valid, and nothing flows back any more")
        shift = await self._traffic.begin("after", alone=True)
        await life.advance("completed", within=_LONG)
        await self._traffic.reaches(shift, _MEASURED_REQUESTS, within=_SOON)
        self._report.say(self._traffic.pulse())
        return shift

    # --- the end ---

    async def _account(self, before: dict[str, float]) -> None:
        self._report.chapter("What the traffic says in the end")
        traffic = self._traffic
        await self._audit("tables", traffic.ended)
        said = {shift.name: shift.summary["ms"] for shift in traffic.ended}
        print_table(
            ("endpoint: p50 / p99 ms (requests)", "key-value store", "tables"), latencies(said["before"], said["after"])
        )
        after = await shop.timed(self._calls, self._places.shop)
        print_table(
            ("the shop is asked for", "key-value store, ms", "tables, ms", "times as fast"),
            ((name, f"{ms:,.0f}", f"{after[name]:,.1f}", f"{ms / after[name]:,.0f}") for name, ms in before.items()),
        )
        failed, wrong = traffic.total("failures"), traffic.total("wrong")
        self._report.say(
            f"{traffic.total('requests'):,} requests: {failed} failed, {wrong} wrong answers "
            f"({traffic.total('stale')} of them stale); {traffic.total('retries')} were asked to come again, and did"
        )
        self._say_faults()
        self._verdict.demand(not failed, f"{failed} requests failed")
        self._verdict.demand(not wrong, f"{wrong} answers were wrong")

    async def _draw_order(self, life: Life, trace_id: str) -> None:
        self._report.chapter("One order on its way: shop, outbox, Kafka, tables, in one trace")
        whole = flow.is_whole_write(f"replank.migrate.{life.name}")
        drawn = await flow.draw(self._report, self._places.jaeger, trace_id, whole)
        self._verdict.demand(drawn, "the trace of the order did not come whole")

    def _conclude(self, life: Life) -> None:
        self._report.say("")
        self._report.say(f"The shop answers at {self._places.shop}.")
        if self._places.jaeger is not None:
            self._report.say(f"Its traces: {self._places.jaeger}/search?service=storefront")
        self._report.say(f"Who did what: `replank migrate audit {life.name}`; the way back is still open.")
        self._report.say('The stack stays up: `eval "$(make env)"` tells your shell where it is, `make down` stops it.')
        self._report.conclude(self._verdict)

    # --- what chapters share ---

    async def _capture(self, life: Life) -> None:
        began = time.monotonic()
        await life.start(within=_SOON)
        await life.advance("backfilling", within=_SOON)
        self._report.say(f"triggers, tables, functions after {time.monotonic() - began:.1f} s")

    async def _backfill(self, life: Life, records: int) -> None:
        began = time.monotonic()
        seen = await life.when(
            lambda seen: seen.progress is not None and seen.progress.done, what=f"{records:,} records", within=_LONG
        )
        took, progress = time.monotonic() - began, seen.progress or Progress(rows=0)
        self._report.say(
            f"{progress.rows:,} records in {took:.1f} s, {progress.rows / took:,.0f} a second; filled "
            f"{progress.filled:,}, already there {progress.kept:,}, rejected {progress.rejected:,}"
        )

    async def _compare(self, life: Life) -> None:
        await life.advance("verifying", within=_SOON)
        began = time.monotonic()
        run = await life.compared(within=_LONG)
        self._report.say(
            f"{run.compared:,} records compared with their rows in {time.monotonic() - began:.1f} s: {run.different} "
            f"differ, {run.unsettled} unsettled; {run.percent} per cent agree"
        )
        if run.state != "done" or run.different or run.unsettled:
            raise ReplankError(
                f"a comparison is {run.state}: {run.different} records differ, {run.unsettled} are unsettled",
                fix=f"`replank migrate mismatches {self._mapping.name}` names them",
            )

    async def _accept(self, life: Life, planted: Planted) -> None:
        """Give up, by name, the records that nobody can mend, once they are the only rejects."""
        lost = planted.lost
        await until(
            life.rejects,
            lambda rejects: len(rejects) <= len(lost),
            what="the mended records to leave the rejects",
            within=_SOON,
            so_far=lambda rejects: f"{len(rejects)} are left, {len(lost)} should be",
        )
        accepted = await life.accept(lost, "of no use to anybody: left behind")
        self._report.say(f"{accepted:,} records that cannot be rows accepted as lost")

    async def _compare_reads(self, life: Life) -> None:
        await life.advance("shadow_reads", within=_LONG)
        seen = await life.when(
            lambda seen: seen.compared_reads.compared >= _COMPARED_READS,
            what=f"{_COMPARED_READS} compared reads",
            within=_SOON,
        )
        reads = seen.compared_reads
        self._report.say(f"{reads.compared:,} reads compared: {reads.mismatched} mismatches, {reads.errors} errors")

    async def _flip(self, life: Life) -> None:
        await life.advance("new_only", within=_LONG)
        held = await self._held(life)
        await life.written("target", within=_SOON)
        self._report.say(f"the tables have the writes; writers waited {held} s for that")
        await self._some_traffic()
        self._report.say(self._traffic.pulse())

    @staticmethod
    async def _held(life: Life) -> Any:
        """For how many seconds writers were held when the writes moved last."""
        return (await life.last("arrive")).evidence["held_seconds"]

    async def _hand_over(self, shift: Shift, name: str) -> Shift:
        """The next shift begins, then this one ends: the shop never stands still."""
        following = await self._traffic.begin(name)
        await self._traffic.reaches(shift, _MEASURED_REQUESTS, within=_SOON)
        await self._traffic.end(shift)
        return following

    async def _some_traffic(self) -> None:
        """Let the shop answer some requests as it is now."""
        shift = self._traffic.shifts[-1]
        await self._traffic.reaches(shift, shift.requests + _BETWEEN_STEPS, within=_SOON)

    async def _audit(self, store: str, shifts: list[Shift], *, within: float = 0.0) -> None:
        """Hold a store to what the traffic knows, again and again for some seconds if it has to catch up."""
        deadline = time.monotonic() + within
        asked, wrong = await self._traffic.audit(store, shifts)
        while wrong and time.monotonic() < deadline:
            asked, wrong = await self._traffic.audit(store, shifts)
        name = {"kv": "key-value store", "tables": "tables"}[store]
        self._report.say(f"{name}: of {asked:,} things that the traffic knows for true, {wrong} are otherwise")
        self._verdict.demand(not wrong, f"the {name}: {wrong} of {asked} things are not as they should be")

    def _say_faults(self) -> None:
        for fault in self._traffic.first_faults():
            self._report.say(f"  {fault}")
