from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

from replank.objects import ObjectStore, ObjectStoreSettings

MIB = 1024 * 1024


def resident() -> int:
    """Resident memory of this process in bytes."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


async def test_memory_stays_flat_while_256_mib_go_in_and_out(settings_for: object, s3: object) -> None:
    assert callable(settings_for)
    settings = settings_for(part_size=8 * MIB)
    assert isinstance(settings, ObjectStoreSettings)
    async with ObjectStore(settings) as store:
        # Connections, threads and the allocator's own pools are there before the measurement.
        await store.put("warm", os.urandom(17 * MIB))
        size, chunk = 256 * MIB, os.urandom(MIB)
        start = peak = resident()

        async def source() -> AsyncIterator[bytes]:
            nonlocal peak
            for _ in range(size // MIB):
                peak = max(peak, resident())
                yield chunk

        info = await store.put("large", source())
        put_growth = peak - start

        start = peak = resident()
        received = 0
        async with store.get("large", sha256=info.sha256) as body:
            async for piece in body:
                received += len(piece)
                peak = max(peak, resident())
        get_growth = peak - start
    assert info.size == received == size
    assert put_growth < 64 * MIB
    assert get_growth < 16 * MIB
    print(f"growth: put {put_growth / MIB:.0f} MiB, get {get_growth / MIB:.0f} MiB")
