"""HTTP of the proof that the modes of the vault are apart. It is the only route that knows of more than one mode."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Self

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.requests import Request

from replank.authz.routes import demand
from replank.contracts.schema import VaultMode
from replank.http import CurrentPrincipal
from replank.postgres import Pools
from replank_schema.vault.isolation import Attempt, Side, verify_isolation
from replank_schema.vault.settings import VaultModeSettings

_log = logging.getLogger(__name__)


class AttemptView(BaseModel):
    """One thing that was tried with the credentials of ``mode``.

    ``reaches_for`` is whose thing it was: the mode's own has to be ``done``, everything else refused. ``answer`` is
    what the server called it: SQLSTATE, S3's code, or ``done``.
    """

    mode: VaultMode
    reaches_for: str
    side: Side
    what: str
    refused: bool
    answer: str
    as_it_should_be: bool

    @classmethod
    def of(cls, attempt: Attempt) -> Self:
        return cls.model_validate(attempt, from_attributes=True)


class IsolationView(BaseModel):
    """Whether the modes are apart, and all that was tried.

    ``refused`` of the ``crossing`` attempts were refused, and ``done`` of the ``own`` ones succeeded.
    """

    isolated: bool
    crossing: int
    refused: int
    own: int
    done: int
    attempts: list[AttemptView]

    @classmethod
    def of(cls, attempts: Sequence[Attempt]) -> Self:
        own = [attempt for attempt in attempts if attempt.control]
        crossing = [attempt for attempt in attempts if not attempt.control]
        return cls(
            isolated=all(attempt.as_it_should_be for attempt in attempts),
            crossing=len(crossing),
            refused=sum(attempt.as_it_should_be for attempt in crossing),
            own=len(own),
            done=sum(attempt.as_it_should_be for attempt in own),
            attempts=[AttemptView.of(attempt) for attempt in attempts],
        )


def router(pools: Pools, modes: Mapping[VaultMode, VaultModeSettings], *, s3_url: str) -> APIRouter:
    """The route that tries every way from each of these modes to every other."""
    routes = APIRouter(prefix="/v1/vault", tags=["vault isolation"])

    async def administers_all(request: Request, principal: CurrentPrincipal) -> None:
        for mode in modes:
            await demand(request, principal, "admin", f"vault:{mode}")

    @routes.post("/verify-isolation", dependencies=[Depends(administers_all)])
    async def verify(principal: CurrentPrincipal) -> IsolationView:
        """Try every cross access with the service's real credentials, and what each mode may do itself."""
        async with pools.general_primary.acquire() as owner:
            found = IsolationView.of(await verify_isolation(owner, modes, s3_url=s3_url))
        extra: dict[str, Any] = {
            "asked_by": principal.user,
            "crossing": found.crossing,
            "refused": found.refused,
            "own": found.own,
            "done": found.done,
        }
        if found.isolated:
            _log.info("the modes of the vault are apart", extra=extra)
        else:
            _log.error("the modes of the vault are not apart", extra=extra)
        return found

    return routes
