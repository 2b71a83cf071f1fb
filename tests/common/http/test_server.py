"""A served process listens on loopback, and stops without dropping what it was doing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import httpx
import pytest

from replank.errors import ConfigurationError
from replank.http.server import listening_socket
from replank.testing.processes import Process
from tests.common.http.conftest import Issuer

SHOP = "tests.common.http.served_shop"


async def address(shop: Process) -> str:
    line = await shop.line_with("listening on ")
    return "http://" + line.rsplit(" ", 1)[1]


async def test_serves_on_loopback_and_finishes_what_it_began_when_told_to_stop(issuer: Issuer) -> None:
    async with Process(SHOP, str(issuer.path), "0") as shop:
        base = await address(shop)
        assert base.startswith("http://127.0.0.1:")
        await shop.line_with("lifespan begins")
        async with httpx.AsyncClient(base_url=base) as client:
            assert (await client.get("/healthz")).json() == {"alive": True}
            assert (await client.get("/slow")).status_code == 401
            headers = {"authorization": f"Bearer {issuer.token()}"}
            in_flight = asyncio.create_task(client.get("/slow", headers=headers))
            await shop.line_with("slow request begins")
            shop.terminate()
            await shop.line_with("Waiting for connections to close")
            os.kill(shop.pid, signal.SIGUSR1)
            assert (await in_flight).json() == {"finished": True}
        assert await shop.exit_code() == 0
        assert shop.output.index("lifespan ends") < shop.output.index("served")


async def test_a_request_that_never_ends_does_not_hold_up_the_stop(issuer: Issuer) -> None:
    async with Process(SHOP, str(issuer.path), "0") as shop:
        headers = {"authorization": f"Bearer {issuer.token()}"}
        async with httpx.AsyncClient(base_url=await address(shop)) as client:
            stuck = asyncio.create_task(client.get("/stuck", headers=headers))
            await shop.line_with("stuck request begins")
            shop.terminate()
            assert await shop.exit_code(within=10) == 0
            answer = await stuck
            assert answer.status_code == 503
            assert answer.json()["type"] == "urn:replank:problem:stopping"
        assert "lifespan ends" in shop.output


async def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            listening_socket("127.0.0.1", port)
    with pytest.raises(ConfigurationError, match="HTTP_HOST"):
        listening_socket("no such host.invalid", 0)


async def test_an_application_that_cannot_start_ends_with_an_error(issuer: Issuer) -> None:
    async with Process(SHOP, str(issuer.path), "0", "broken") as shop:
        assert await shop.exit_code() not in {0, -signal.SIGTERM}
        assert "cannot start" in shop.output
        assert "StartFailed" in shop.output
