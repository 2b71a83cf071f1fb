"""Free TCP ports on loopback, chosen so that a server gets the same port back after it was killed."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Final

from replank_local.errors import StackError

HOST: Final = "127.0.0.1"
_LOWEST: Final = 20_000
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of loopback now."""
    with socket.socket() as probe:
        # As servers do: a port that only lingers in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_port(taken: Collection[int] = ()) -> int:
    """A free port below the kernel's ephemeral range.

    Not one that the kernel gives out (bind to 0): while a server is down, its port could become the source port of any
    outgoing connection, even of a client connecting to itself while it waits for that server; it could not start again.
    """
    highest = int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.exists() else 32_768
    candidates = range(_LOWEST, highest) if highest > _LOWEST + 1000 else range(10_240, 20_000)
    for port in random.sample(candidates, k=min(1000, len(candidates))):
        if port not in taken and is_free(port):
            return port
    raise StackError("no free TCP port was found on loopback", fix="stop something that listens on many ports")
