"""Says that it is ready, then waits to be ended; says so when it is asked to, unless told to be stubborn."""

import signal
import sys

signal.signal(signal.SIGTERM, lambda *_: (print("told to end", flush=True), sys.exit(3)))
print("ready", *sys.argv[1:], flush=True)
print("a complaint", file=sys.stderr, flush=True)
if "crash" in sys.argv:
    raise SystemExit(4)
while True:
    signal.pause()
