"""Ports are free, and stay a server's own while it is down."""

from __future__ import annotations

import socket
from pathlib import Path

from replank_local import ports

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_port_that_somebody_listens_on_is_not_free() -> None:
    with socket.create_server((ports.HOST, 0)) as somebody:
        assert not ports.is_free(somebody.getsockname()[1])


def test_a_chosen_port_can_be_listened_on_and_is_none_that_was_taken() -> None:
    first = ports.free_port()
    second = ports.free_port({first})
    assert first != second
    with socket.create_server((ports.HOST, first)), socket.create_server((ports.HOST, second)):
        assert not ports.is_free(first)


def test_a_chosen_port_is_none_that_the_kernel_gives_to_outgoing_connections() -> None:
    lowest, highest = (int(bound) for bound in EPHEMERAL.read_text().split())
    for _ in range(50):
        assert not lowest <= ports.free_port() <= highest
