"""HTTP in: check and write, in OpenFGA's shapes.

Errors are problem documents like everywhere, and carry OpenFGA's ``code`` and ``message`` for its clients.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field, JsonValue

from replank.contracts.fields import Actor, Relation, Slug, Thing
from replank.http import CurrentPrincipal, Problem, RequestModel
from replank.postgres import Pools
from replank_auth_cache.tuples import service
from replank_auth_cache.tuples.decisions import Decisions
from replank_auth_cache.tuples.model import OnConflict, RelationTuple, UnknownStore, WriteConflict

_MOST_TUPLES: Final = 100

StoreName = Annotated[Slug, Path(alias="store")]


class TupleKey(RequestModel):
    """A direct tuple: no usersets, no wildcards, no condition."""

    user: Actor
    relation: Relation
    object: Thing

    def value(self) -> RelationTuple:
        return RelationTuple(self.user, self.relation, self.object)


class CheckRequest(RequestModel):
    """``context`` is for conditions, of which there are none here."""

    tuple_key: TupleKey
    context: dict[str, JsonValue] | None = None
    consistency: Literal["UNSPECIFIED", "MINIMIZE_LATENCY", "HIGHER_CONSISTENCY"] = "UNSPECIFIED"


class CheckResponse(BaseModel):
    allowed: bool
    resolution: Literal[""] = ""


class Writes(RequestModel):
    tuple_keys: list[TupleKey] = Field(min_length=1)
    on_duplicate: OnConflict = OnConflict.ERROR


class Deletes(RequestModel):
    tuple_keys: list[TupleKey] = Field(min_length=1)
    on_missing: OnConflict = OnConflict.ERROR


class WriteRequest(RequestModel):
    """All of it is applied, or none."""

    writes: Writes | None = None
    deletes: Deletes | None = None


class WriteResponse(BaseModel):
    """Empty, as in OpenFGA."""


class _OpenFgaRoute(APIRoute):
    """Answers a request that does not fit its model as OpenFGA does, and says which errors of ours are which of its."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        serve = super().get_route_handler()

        async def serve_with_codes(request: Request) -> Response:
            try:
                return await serve(request)
            except RequestValidationError as error:
                raise _refused("validation_error", _first_fault(error.errors()[0])) from None
            except UnknownStore as error:
                raise _refused("store_id_not_found", error.message, status=404, fix=error.fix) from None
            except WriteConflict as error:
                raise _refused("write_failed_due_to_invalid_input", error.message) from None

        return serve_with_codes


def router(pools: Pools, decisions: Decisions) -> APIRouter:
    """The routes. Whoever has a token may check; writing needs ``write`` on ``store:<store>``."""
    routes = APIRouter(prefix="/stores/{store}", tags=["tuples"], route_class=_OpenFgaRoute)

    @routes.post("/check")
    async def check(store: StoreName, body: CheckRequest) -> CheckResponse:
        """Has this user this relation to this object?"""
        exact = body.consistency == "HIGHER_CONSISTENCY"
        return CheckResponse(allowed=await decisions.allowed(store, body.tuple_key.value(), exact=exact))

    @routes.post("/write")
    async def write(store: StoreName, body: WriteRequest, principal: CurrentPrincipal) -> WriteResponse:
        """Write and delete tuples, all or none."""
        if not await decisions.allowed(store, RelationTuple(principal.user, "write", f"store:{store}")):
            raise Problem(
                403,
                "forbidden",
                f"{principal.user} has not the relation write to store:{store}",
                fix="have somebody who may write grant it",
                extensions={"code": "forbidden", "message": "the caller may not write to this store"},
            )
        writes = [key.value() for key in body.writes.tuple_keys] if body.writes else []
        deletes = [key.value() for key in body.deletes.tuple_keys] if body.deletes else []
        if not writes and not deletes:
            raise _refused("invalid_write_input", "the request has neither writes nor deletes")
        if len(writes) + len(deletes) > _MOST_TUPLES:
            raise _refused("exceeded_entity_limit", f"the number of write operations exceeds {_MOST_TUPLES}")
        if len({*writes, *deletes}) < len(writes) + len(deletes):
            raise _refused("cannot_allow_duplicate_tuples_in_one_request", "a tuple occurs twice in the request")
        async with pools.general_primary.acquire() as conn, conn.transaction():
            await service.change(
                conn,
                decisions,
                store,
                writes=writes,
                deletes=deletes,
                on_duplicate=body.writes.on_duplicate if body.writes else OnConflict.ERROR,
                on_missing=body.deletes.on_missing if body.deletes else OnConflict.ERROR,
                by=principal.user,
            )
        return WriteResponse()

    return routes


def _refused(code: str, message: str, *, status: int = 400, fix: str = "") -> Problem:
    return Problem(status, code.replace("_", "-"), message, fix=fix, extensions={"code": code, "message": message})


def _first_fault(fault: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in fault["loc"] if part != "body")
    return f"invalid {where or 'body'}: {fault['msg'].removeprefix('Value error, ')}"
