"""Authorization of FastAPI routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request

from replank.authz.client import AuthzClient
from replank.errors import ConfigurationError
from replank.http.auth import Principal, current_principal
from replank.http.problems import Problem


def require(relation: str, object: str) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency that lets a request pass only if its caller has ``relation`` to ``object``, and gives the caller.

    ``object`` may name path parameters::

        Viewer = Annotated[Principal, Depends(require("view", "migration:{migration_id}"))]

    It answers 403 otherwise, and 503 when nobody can tell. The client is the ``authz`` of `create_app`.
    """

    async def allowed(request: Request) -> Principal:
        principal = current_principal(request)
        await demand(request, principal, relation, object.format_map(request.path_params))
        return principal

    return allowed


async def demand(request: Request, principal: Principal, relation: str, object: str) -> None:
    """As `require`, for an object that is known only inside the route. Raises the 403 `Problem`."""
    await demand_one(request, principal, (relation, object))


async def demand_one(
    request: Request, principal: Principal, *rights: tuple[str, str], lacking: tuple[str, str] | None = None
) -> None:
    """As `demand`, where each of several rights (relation, object) is enough.

    They are asked for one after the other until one is there: begin with the one that most callers have. The problem
    names ``lacking``, which is what a caller would ask for; without it, the last one.
    """
    client: AuthzClient | None = getattr(request.app.state, "authz", None)
    if client is None:
        raise ConfigurationError("this application has no authorization client", fix="give create_app an authz")
    for relation, thing in rights:
        if (await client.check(principal.user, relation, thing)).allowed:
            return
    relation, thing = lacking or rights[-1]
    raise Problem(
        403,
        "forbidden",
        f"{principal.user} has not the relation {relation} to {thing}",
        fix="ask an owner of the object for the right",
        extensions={"subject": principal.user, "relation": relation, "object": thing},
    )
