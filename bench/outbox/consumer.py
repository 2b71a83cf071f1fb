"""The consumer of the latency run, as a process of its own: stamps every event when it has it in hand."""

from __future__ import annotations

import argparse
import asyncio
import json
from array import array
from pathlib import Path

from bench import kafka
from bench.outbox.verify import Arrivals, read_all


async def _consume(arguments: argparse.Namespace) -> Arrivals:
    arrivals = Arrivals(arguments.events)
    async with kafka.reader(arguments.kafka, arguments.topic) as consumer:
        # Its first answer shows that the consumer knows the partitions: from here on it only fetches.
        await kafka.EndOffsets(consumer).now()
        print("ready")
        await read_all(consumer, arrivals, timeout_s=arguments.timeout)
    return arrivals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--timeout", type=float, required=True, help="seconds until it gives up on missing events")
    parser.add_argument("--stamps", required=True, help="file for the arrival times, one 64-bit integer an event")
    arguments = parser.parse_args()
    arrivals = asyncio.run(_consume(arguments))
    Path(arguments.stamps).write_bytes(array("q", arrivals.arrived_ns).tobytes())
    print(
        json.dumps(
            {
                "distinct": arrivals.distinct,
                "duplicates": arrivals.duplicates,
                "out_of_order": arrivals.out_of_order,
                "malformed": arrivals.malformed,
            }
        )
    )


if __name__ == "__main__":
    main()
