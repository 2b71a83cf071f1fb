"""HTTP of one mode of the vault."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from uuid_utils.compat import uuid7

from replank.authz.routes import demand_one
from replank.contracts.fields import Sha256
from replank.contracts.schema import VaultMode
from replank.errors import ReplankError
from replank.http import CurrentPrincipal, Keyset, Page, PageQuery, Principal, Problem
from replank_schema.vault import contents, inline_store, job_store, publishing, records, store, uploads
from replank_schema.vault.checking import check_validity, difference_of
from replank_schema.vault.contents import Received
from replank_schema.vault.model import (
    BlobBusy,
    BlobUnknown,
    Changes,
    DigestMismatch,
    NameTaken,
    NotActive,
    RevisionChanged,
    Schema,
    SchemaNotFound,
    Sort,
    StillUsed,
    VaultError,
    thing,
)
from replank_schema.vault.pattern import MoveRefused, NeedsOptimizedSchemas
from replank_schema.vault.reads import Reads
from replank_schema.vault.scan import NotJson
from replank_schema.vault.serving import (
    STORE_PROBLEMS,
    content_response,
    declared_digest,
    expected_revision,
    offered_revision,
    store_problem,
)
from replank_schema.vault.uploads import Upload
from replank_schema.vault.vault import Vault
from replank_schema.vault.views import (
    BlobView,
    Bulk,
    BulkResult,
    BulkView,
    ConsumersView,
    ConsumerView,
    DifferenceQuery,
    DifferenceView,
    Digests,
    JobView,
    MissingView,
    NewSchema,
    SchemaChanges,
    SchemaQuery,
    SchemaView,
    UploadQuery,
    ValidityView,
    VersionQuery,
    VersionView,
)

PREFIXES: Final[dict[VaultMode, str]] = {"standard": "/schemavault", "pro": "/pro/schemas"}

_KINDS: Final[dict[type[ReplankError], tuple[int, str]]] = {
    SchemaNotFound: (404, "schema-not-found"),
    NameTaken: (409, "name-taken"),
    NotActive: (409, "not-active"),
    RevisionChanged: (412, "revision-changed"),
    BlobUnknown: (409, "content-unknown"),
    BlobBusy: (503, "content-busy"),
    DigestMismatch: (422, "digest-mismatch"),
    NotJson: (422, "not-json"),
    NeedsOptimizedSchemas: (409, "needs-optimized-schemas"),
    MoveRefused: (409, "phase-refuses"),
}
# The owner's right is on its way to auth-cache for a moment after a schema was made.
_RIGHT_ON_ITS_WAY: Final = timedelta(seconds=30)

_UPLOADS: Final = r"/upload|/[^/]+/versions|/blobs/[^/]+"

# What an upload answers, and that it has a body, which no model describes.
_UPLOADED: Final[dict[str, Any]] = {
    "status_code": 201,
    "response_model": SchemaView,
    "responses": {200: {"description": "It was there already."}, 202: {"model": JobView}},
    "openapi_extra": {"requestBody": {"content": {"application/json": {"schema": {}}}}},
}

_newest_first = Keyset("vault-versions", tuple[int])

_orders: Final[dict[Sort, Keyset[Any]]] = {
    Sort.NAME: Keyset("vault-name", tuple[str, UUID]),
    Sort.NAME_DOWN: Keyset("vault-name-down", tuple[str, UUID]),
    Sort.UPDATED: Keyset("vault-updated", tuple[datetime, UUID]),
    Sort.UPDATED_DOWN: Keyset("vault-updated-down", tuple[datetime, UUID]),
    Sort.CREATED: Keyset("vault-created", tuple[datetime, UUID]),
    Sort.CREATED_DOWN: Keyset("vault-created-down", tuple[datetime, UUID]),
    Sort.SIZE: Keyset("vault-size", tuple[int, UUID]),
    Sort.SIZE_DOWN: Keyset("vault-size-down", tuple[int, UUID]),
    Sort.FIELDS: Keyset("vault-fields", tuple[int, UUID]),
    Sort.FIELDS_DOWN: Keyset("vault-fields-down", tuple[int, UUID]),
}


class VaultRoute(APIRoute):
    """Answers what the use cases refuse as problems."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except StillUsed as error:
                raise _still_used(error) from error
            except tuple(_KINDS) as error:
                raise _problem(error) from error
            except tuple(STORE_PROBLEMS) as error:
                raise store_problem(error) from error

        return answer


def _problem(error: ReplankError) -> Problem:
    status, slug = _KINDS[type(error)]
    return Problem(status, slug, error.message, fix=error.fix, headers={"retry-after": "2"} if status == 503 else {})


def _still_used(error: StillUsed) -> Problem:
    return Problem(
        409,
        "still-used",
        error.message,
        fix=error.fix,
        extensions={
            "consumers": [ConsumerView.of(consumer).model_dump(mode="json") for consumer in error.consumers],
            "reasons": list(error.reasons),
        },
    )


class Rights:
    """Who may do what in one mode. auth-cache answers; it is told of owners by events."""

    def __init__(self, mode: VaultMode) -> None:
        self._mode = mode
        self._vault = f"vault:{mode}"

    async def see(self, request: Request, principal: CurrentPrincipal) -> None:
        view = ("view", self._vault)
        await demand_one(request, principal, view, ("publish", self._vault), ("admin", self._vault), lacking=view)

    async def publish(self, request: Request, principal: CurrentPrincipal) -> None:
        publish = ("publish", self._vault)
        await demand_one(request, principal, publish, ("admin", self._vault), lacking=publish)

    async def administer(self, request: Request, principal: CurrentPrincipal) -> None:
        await demand_one(request, principal, ("admin", self._vault))

    async def change(self, request: Request, principal: Principal, schema: Schema) -> None:
        """The owner of a schema may change it, and whoever administers the vault."""
        if schema.owner == principal.user and datetime.now(UTC) - schema.created_at < _RIGHT_ON_ITS_WAY:
            return
        await demand_one(request, principal, ("owner", thing(self._mode, schema.id)), ("admin", self._vault))


def router(vault: Vault, reads: Reads, wake: Callable[[], None]) -> APIRouter:
    """The routes of one mode. ``wake`` tells the workers of this process that there is a new job."""
    door = _Door(vault, reads, Rights(vault.mode), wake)
    routes = APIRouter(prefix=PREFIXES[vault.mode], tags=[f"vault {vault.mode}"], route_class=VaultRoute)
    _add_uploads(routes, door)
    _add_blobs(routes, door)
    _add_jobs(routes, door)
    _add_lookups(routes, door)
    _add_schemas(routes, door)
    _add_bulk(routes, door)
    _add_versions(routes, door)
    return routes


def streamed_paths(vault: Vault) -> dict[re.Pattern[str], int]:
    """The paths of uploads, and how large those may be."""
    return {re.compile(f"{PREFIXES[vault.mode]}({_UPLOADS})"): vault.limits.most_bytes}


@dataclass(frozen=True, slots=True)
class _Door:
    """What the routes of one mode share. ``wake`` tells the workers of this process that there is a new job."""

    vault: Vault
    reads: Reads
    rights: Rights
    wake: Callable[[], None]

    async def found(self, schema_id: UUID) -> Schema:
        schema = await self.reads.schema(schema_id)
        if schema is None:
            raise SchemaNotFound(f"there is no schema {schema_id}")
        return schema

    async def changeable(self, request: Request, principal: Principal, schema_id: UUID) -> Schema:
        """The schema, if the caller may change it."""
        schema = await self.found(schema_id)
        await self.rights.change(request, principal, schema)
        return schema

    async def take_in(self, request: Request, upload: Upload, by: str, declared: str | None) -> Received | Response:
        """Read the body. The content of a small upload, to be published; a large one is queued, and answered."""
        vault = self.vault
        job_id = uuid7()
        only_small = (await self.reads.phase()).writes_old
        received = await contents.receive(vault, request.stream(), job_id, declared=declared, only_small=only_small)
        if received.data is not None:
            return received
        wanted = upload.model_copy(update={"sha256": received.blob.sha256, "stored_size": received.blob.stored_size})
        job = await uploads.queue(vault, job_id, received.blob, wanted, by=by)
        self.wake()
        return _json(JobView.of(job), 202, {"location": f"{PREFIXES[vault.mode]}/jobs/{job.id}"})

    def published(self, done: publishing.Published) -> Response:
        schema = done.schema
        headers = {"location": f"{PREFIXES[self.vault.mode]}/{schema.id}", "etag": f'"{schema.revision}"'}
        return _json(SchemaView.of(schema), 201 if done.new else 200, headers)


def _add_uploads(routes: APIRouter, door: _Door) -> None:
    vault = door.vault

    @routes.post("/upload", dependencies=[Depends(door.rights.publish)], **_UPLOADED)
    async def upload(request: Request, said: Annotated[UploadQuery, Query()], principal: CurrentPrincipal) -> Response:
        """Publish a schema: the body is its content, streamed. A large one is answered with a job."""
        declared = declared_digest(request)
        draft = said.draft(principal.user)
        await publishing.require_name(vault, draft.name, by=principal.user)
        received = await door.take_in(request, Upload(what="schema", draft=draft), principal.user, declared)
        if isinstance(received, Response):
            return received
        return door.published(await publishing.create(vault, draft, received, by=principal.user))

    @routes.post(
        "",
        status_code=201,
        dependencies=[Depends(door.rights.publish)],
        response_model=SchemaView,
        responses={200: {"model": SchemaView}},
    )
    async def create(body: NewSchema, principal: CurrentPrincipal) -> Response:
        """Publish a schema whose content is in the vault already: nothing is sent again."""
        received = await records.known(vault, body.sha256)
        return door.published(await publishing.create(vault, body.draft(principal.user), received, by=principal.user))

    @routes.post("/{schema_id}/versions", **_UPLOADED)
    async def publish_version(
        request: Request, schema_id: UUID, query: Annotated[VersionQuery, Query()], principal: CurrentPrincipal
    ) -> Response:
        """Publish the next version: the body is its content, or ``sha256`` names one that is in the vault already."""
        declared = declared_digest(request)
        revision = expected_revision(request)
        schema = await door.changeable(request, principal, schema_id)
        publishing.require_active(schema)
        if query.sha256 is not None:
            received: Received | Response = await records.known(vault, query.sha256)
        else:
            wanted = Upload(what="version", schema_id=schema_id, revision=revision, note=query.note, force=query.force)
            received = await door.take_in(request, wanted, principal.user, declared)
        if isinstance(received, Response):
            return received
        done = await publishing.publish_version(
            vault, schema_id, received, revision=revision, note=query.note, force=query.force, by=principal.user
        )
        return door.published(done)


def _add_blobs(routes: APIRouter, door: _Door) -> None:
    vault, publish = door.vault, [Depends(door.rights.publish)]

    @routes.put("/blobs/{sha256}", dependencies=publish, **{**_UPLOADED, "response_model": BlobView})
    async def put_blob(request: Request, sha256: Annotated[Sha256, Path()], principal: CurrentPrincipal) -> Response:
        """Send a content, to be referred to afterwards. One that is known is not read again."""
        if not (await door.reads.phase()).writes_new:
            raise NeedsOptimizedSchemas("a content was sent without a schema")
        async with vault.pool.acquire() as conn:
            there = await store.touch(conn, sha256)
        if there is not None:
            return _json(BlobView.of(there), 200)
        received = await door.take_in(request, Upload(what="blob"), principal.user, sha256)
        if isinstance(received, Response):
            return received
        blob = await contents.keep(vault, received.blob, received.data or b"")
        async with vault.pool.acquire() as conn, conn.transaction():
            await contents.refer(conn, blob)
        return _json(BlobView.of(blob), 201)

    @routes.post("/blobs/missing", dependencies=publish)
    async def missing(body: Digests) -> MissingView:
        """Which of these contents are not in the vault, and have to be sent."""
        tables_missing = store.missing if (await door.reads.phase()).writes_new else inline_store.missing
        async with vault.pool.acquire() as conn:
            return MissingView(missing=await tables_missing(conn, body.sha256))


def _add_jobs(routes: APIRouter, door: _Door) -> None:
    vault, see = door.vault, [Depends(door.rights.see)]

    @routes.get("/jobs/{job_id}", dependencies=see)
    async def get_job(job_id: UUID) -> JobView:
        """How far a job is, and what came of it."""
        async with vault.pool.acquire() as conn:
            job = await job_store.get(conn, job_id)
        if job is None:
            raise SchemaNotFound(f"there is no job {job_id}", fix="jobs are forgotten a week after they ended")
        return JobView.of(job)

    @routes.post("/jobs/{job_id}/cancel", status_code=202, dependencies=see)
    async def cancel_job(request: Request, job_id: UUID, principal: CurrentPrincipal) -> JobView:
        """Have a job cancelled. Whoever asked for it may, and who administers the vault."""
        async with vault.pool.acquire() as conn:
            job = await job_store.get(conn, job_id)
            if job is None:
                raise SchemaNotFound(f"there is no job {job_id}")
        if job.created_by != principal.user:
            await demand_one(request, principal, ("admin", f"vault:{vault.mode}"))
        async with vault.pool.acquire() as conn:
            cancelled = await job_store.cancel(conn, job_id)
        if cancelled is None:
            raise Problem(409, "job-ended", f"the job {job_id} has ended", fix="look at its result")
        return JobView.of(cancelled)


def _add_lookups(routes: APIRouter, door: _Door) -> None:
    vault, see = door.vault, [Depends(door.rights.see)]

    async def named(name: str) -> Schema:
        schema = await door.reads.active(name)
        if schema is None:
            raise SchemaNotFound("there is no active schema of this name")
        return schema

    @routes.head("/by-name/{name:path}/content", dependencies=see, include_in_schema=False)
    @routes.get("/by-name/{name:path}/content", dependencies=see, response_class=Response)
    async def content_by_name(request: Request, name: str) -> Response:
        """The current content of what is published under a name."""
        schema = await named(name)
        return content_response(request, vault, await door.reads.content(schema.id, schema.version))

    @routes.get("/by-name/{name:path}", dependencies=see)
    async def by_name(name: str, response: Response) -> SchemaView:
        """What is published under a name."""
        schema = await named(name)
        response.headers["etag"] = f'"{schema.revision}"'
        return SchemaView.of(schema)


def _add_schemas(routes: APIRouter, door: _Door) -> None:
    vault, see = door.vault, [Depends(door.rights.see)]

    @routes.get("", dependencies=see, response_model=Page[SchemaView])
    async def list_schemas(query: Annotated[SchemaQuery, Query()]) -> Response:
        """Schemas without their contents, by pages."""
        order = _orders[query.sort]
        after = order.after(query)
        rows = await door.reads.page(query.filters(), query.sort, after=after, limit=query.limit + 1)
        page = order.page(rows, query, key=lambda row: (getattr(row, query.sort.column), row.id), view=SchemaView.of)
        # Not left to the framework, which would check the page once more.
        return _json(page, 200)

    @routes.get("/{schema_id}", dependencies=see)
    async def get_schema(schema_id: UUID, response: Response) -> SchemaView:
        """One schema, without its content."""
        schema = await door.found(schema_id)
        response.headers["etag"] = f'"{schema.revision}"'
        return SchemaView.of(schema)

    @routes.patch("/{schema_id}")
    async def change_schema(
        request: Request, schema_id: UUID, body: SchemaChanges, principal: CurrentPrincipal, response: Response
    ) -> SchemaView:
        """Change what is said of a schema."""
        revision = expected_revision(request)
        await door.changeable(request, principal, schema_id)
        schema = await publishing.change(vault, schema_id, body.changes(), revision=revision, by=principal.user)
        response.headers["etag"] = f'"{schema.revision}"'
        return SchemaView.of(schema)

    @routes.delete("/{schema_id}")
    async def delete_schema(
        request: Request, schema_id: UUID, principal: CurrentPrincipal, *, force: bool = False
    ) -> SchemaView:
        """Delete a schema softly. One that is used is deleted with ``force`` alone."""
        revision = offered_revision(request)
        await door.changeable(request, principal, schema_id)
        return SchemaView.of(
            await publishing.delete(vault, schema_id, revision=revision, force=force, by=principal.user)
        )

    @routes.post("/{schema_id}/restore")
    async def restore_schema(request: Request, schema_id: UUID, principal: CurrentPrincipal) -> SchemaView:
        """Bring a deleted schema back, with all its versions."""
        await door.changeable(request, principal, schema_id)
        return SchemaView.of(await publishing.restore(vault, schema_id, by=principal.user))

    @routes.get("/{schema_id}/consumers", dependencies=see)
    async def list_consumers(schema_id: UUID) -> ConsumersView:
        """Who was seen using it lately."""
        schema = await door.found(schema_id)
        async with vault.pool.acquire() as conn:
            users = await publishing.live_consumers(conn, vault, schema.name)
        return ConsumersView(consumers=[ConsumerView.of(user) for user in users])


def _add_bulk(routes: APIRouter, door: _Door) -> None:
    vault = door.vault

    @routes.post("/bulk", dependencies=[Depends(door.rights.publish)])
    async def bulk(request: Request, body: Bulk, principal: CurrentPrincipal) -> BulkView:
        """Do one thing to many schemas. Each is done or not by itself, and the answer says of each."""
        results = [await one(request, schema_id, body, principal) for schema_id in dict.fromkeys(body.ids)]
        return BulkView(results=results, failed=sum(not result.ok for result in results))

    async def one(request: Request, schema_id: UUID, body: Bulk, principal: Principal) -> BulkResult:
        try:
            schema = await door.changeable(request, principal, schema_id)
            match body.action:
                case "delete":
                    await publishing.delete(vault, schema_id, revision=None, force=body.force, by=principal.user)
                case "restore":
                    await publishing.restore(vault, schema_id, by=principal.user)
                case _:
                    kept = [tag for tag in schema.tags if tag not in body.tags]
                    tags = [*kept, *body.tags] if body.action == "tag" else kept
                    await publishing.change(
                        vault, schema_id, Changes(tags=tags), revision=schema.revision, by=principal.user
                    )
        except (VaultError, Problem) as error:
            return BulkResult(id=schema_id, ok=False, problem=error.message)
        return BulkResult(id=schema_id, ok=True)


def _add_versions(routes: APIRouter, door: _Door) -> None:
    vault, see = door.vault, [Depends(door.rights.see)]

    async def content(request: Request, schema_id: UUID, number: int | None) -> Response:
        return content_response(request, vault, await door.reads.content(schema_id, number))

    @routes.head("/{schema_id}/content", dependencies=see, include_in_schema=False)
    @routes.get("/{schema_id}/content", dependencies=see, response_class=Response)
    async def current_content(request: Request, schema_id: UUID) -> Response:
        """The content of the current version. Ranges, entity tags and zstd are understood."""
        return await content(request, schema_id, None)

    @routes.head("/{schema_id}/versions/{number}/content", dependencies=see, include_in_schema=False)
    @routes.get("/{schema_id}/versions/{number}/content", dependencies=see, response_class=Response)
    async def version_content(request: Request, schema_id: UUID, number: int) -> Response:
        """The content of a version. It never changes."""
        return await content(request, schema_id, number)

    @routes.get("/{schema_id}/versions", dependencies=see)
    async def list_versions(schema_id: UUID, page: Annotated[PageQuery, Query()]) -> Page[VersionView]:
        """The versions of a schema, the latest first."""
        after = _newest_first.after(page)
        await door.found(schema_id)
        rows = await door.reads.versions(schema_id, before=after[0] if after else store.LATEST, limit=page.limit + 1)
        return _newest_first.page(rows, page, key=lambda row: (row.version,), view=VersionView.of)

    @routes.get("/{schema_id}/versions/{number}", dependencies=see)
    async def get_version(schema_id: UUID, number: int) -> VersionView:
        """One version, without its content."""
        version = await door.reads.version(schema_id, number)
        if version is None:
            raise SchemaNotFound(f"there is no version {number} of schema {schema_id}")
        return VersionView.of(version)

    @routes.get("/{schema_id}/diff", dependencies=see)
    async def diff(schema_id: UUID, query: Annotated[DifferenceQuery, Query()]) -> DifferenceView:
        """What differs between two versions, and whether they are compatible."""
        await door.reads.require_new("versions were to be compared")
        async with vault.pool.acquire() as conn:
            older = await contents.of_version(conn, schema_id, query.older)
            newer = await contents.of_version(conn, schema_id, query.newer)
        return await difference_of(vault, older, newer, query)

    @routes.post("/{schema_id}/versions/{number}/validate", dependencies=see)
    async def validate(schema_id: UUID, number: int) -> ValidityView:
        """Whether the content is a valid JSON Schema. Nothing has to be: the vault keeps any JSON."""
        await door.reads.require_new("a content was to be looked into")
        async with vault.pool.acquire() as conn:
            blob = await contents.of_version(conn, schema_id, number)
        return await check_validity(vault, blob)


def _json(view: BaseModel, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(view.model_dump_json(), status_code=status, headers=headers, media_type="application/json")
