"""HTTP for services: an app factory, problem documents, bearer tokens, readiness, idempotency, paging, and a server."""

from replank.http.app import create_app
from replank.http.auth import Authenticator, CurrentPrincipal, Principal
from replank.http.health import Readiness
from replank.http.idempotency import idempotent
from replank.http.models import RequestModel
from replank.http.paging import Keyset, Page, PageQuery
from replank.http.problems import Problem
from replank.http.server import run

__all__ = [
    "Authenticator",
    "CurrentPrincipal",
    "Keyset",
    "Page",
    "PageQuery",
    "Principal",
    "Problem",
    "Readiness",
    "RequestModel",
    "create_app",
    "idempotent",
    "run",
]
