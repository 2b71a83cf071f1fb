"""A service in a process of its own, for tests of the server: ``python -m tests.common.http.served_shop JWKS PORT``."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from replank.http import Authenticator, Readiness, create_app, run

router = APIRouter()


@router.get("/slow")
async def slow() -> dict[str, bool]:
    """Work that a shutdown has to wait for: until SIGUSR1."""
    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, done.set)
    print("slow request begins", flush=True)
    await done.wait()
    return {"finished": True}


@router.get("/stuck")
async def stuck() -> None:
    print("stuck request begins", flush=True)
    await asyncio.Event().wait()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    if "broken" in sys.argv:
        raise RuntimeError("cannot start")
    print("lifespan begins", flush=True)
    yield
    print("lifespan ends", flush=True)


def main(jwks: str, port: int) -> None:
    logging.basicConfig(level=logging.INFO)
    authenticator = Authenticator(issuer="https://issuer.example", audience="shop", jwks=jwks)
    app = create_app(
        service="shop",
        version="1.0",
        authenticator=authenticator,
        readiness=Readiness(),
        routers=[router],
        lifespan=lifespan,
    )
    run(app, port=port, shutdown_timeout=2)
    print("served", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
