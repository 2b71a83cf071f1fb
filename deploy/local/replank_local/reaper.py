"""Ends the processes of a stack when the program that started them is gone: `python -m replank_local.reaper FOLDER`.

Its standard input is a pipe that nobody writes to; the kernel closes it when the other end dies, even of a SIGKILL.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from replank_local.stack import Stack


def main() -> None:
    """Wait for the end of standard input, then end what the folder's state lists."""
    sys.stdin.buffer.read()
    root = Path(sys.argv[1])
    if (root / "state.json").exists():
        asyncio.run(Stack(root, servers=()).close())


if __name__ == "__main__":
    main()
