"""From ended spans to a collector, without ever being in the way.

Encoded spans wait in a queue that is bounded in bytes; one thread sends them as OTLP over HTTP. A collector that is
slow, dead or absent costs the service nothing: the queue fills up, the oldest spans are dropped and counted, and one
warning a minute says so. Whoever ends a span pays for a list append.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import urllib3
from opentelemetry.instrumentation.utils import suppress_instrumentation

from replank.telemetry import metrics, otlp
from replank.telemetry.template import Scope

_log = logging.getLogger(__name__)

_WARN_EVERY: Final = 60.0  # seconds
_BACKOFF: Final = (0.25, 0.5, 1.0, 2.0, 5.0)  # seconds between attempts; the last one repeats
_TRY_AGAIN: Final = frozenset({408, 429, 500, 502, 503, 504})


class _Batch:
    """Encoded spans by scope, with their number and size."""

    __slots__ = ("count", "scopes", "size")

    def __init__(self) -> None:
        self.scopes: dict[Scope, list[bytes]] = {}
        self.size = 0
        self.count = 0

    def add(self, scope: Scope, encoded: bytes) -> None:
        spans = self.scopes.get(scope)
        if spans is None:
            spans = self.scopes[scope] = []
        spans.append(encoded)
        self.size += len(encoded)
        self.count += 1


class SpanPipeline:
    """Sends spans to the OTLP/HTTP receiver at ``endpoint``, from a thread of its own.

    ``resource`` are the attributes of this process. ``queue_bytes`` bounds what waits: the default holds about 130,000
    spans of a relay. A batch is sent once it has ``batch_bytes``, or after ``delay`` seconds.
    """

    def __init__(
        self,
        endpoint: str,
        resource: Mapping[str, otlp.Value],
        *,
        headers: Mapping[str, str] | None = None,
        queue_bytes: int = 32 * 1024 * 1024,
        batch_bytes: int = 512 * 1024,
        delay: float = 0.2,
        timeout: float = 5.0,
    ) -> None:
        self._url = _traces_url(endpoint)
        self._shown_url = _without_credentials(self._url)
        self._resource = otlp.resource(resource)
        self._headers = {"content-type": "application/x-protobuf", **(headers or {})}
        self._queue_bytes = queue_bytes
        self._batch_bytes = batch_bytes
        self._delay = delay
        self._http = urllib3.PoolManager(
            num_pools=1, maxsize=1, timeout=urllib3.Timeout(connect=2.0, read=timeout), retries=False
        )
        self._filling = _Batch()
        self._full: deque[_Batch] = deque()
        self._full_bytes = 0
        # Ended spans, and those of them that were sent or given up: `flush` waits for the second to reach the first.
        self._added = 0
        self._settled = 0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._flushing = False
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._warned_at = float("-inf")
        self._dropped_since = 0
        self._thread = threading.Thread(target=self._run, name="replank-spans", daemon=True)
        self._thread.start()

    def add(self, scope: Scope, encoded: bytes) -> None:
        """Queue one encoded span. Never blocks; drops the oldest when there is no room."""
        with self._lock:
            self._added += 1
            if self._closing.is_set():
                self._drop(1, "shutdown")
                return
            batch = self._filling
            batch.add(scope, encoded)
            if batch.size < self._batch_bytes:
                return
            self._full.append(batch)
            self._full_bytes += batch.size
            self._filling = _Batch()
            while self._full_bytes > self._queue_bytes:
                oldest = self._full.popleft()
                self._full_bytes -= oldest.size
                self._drop(oldest.count, "queue_full")
            self._changed.notify_all()

    def flush(self, timeout: float = 5.0) -> bool:
        """Block until every span that ended so far was sent or given up; false if ``timeout`` seconds do not do."""
        with self._changed:
            target = self._added
            self._flushing = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._settled >= target, timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Send what waits, for at most ``timeout`` seconds, and end. What is left is dropped and counted."""
        self._deadline = time.monotonic() + timeout
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
        self._thread.join(timeout + 0.5)
        with self._lock:
            left = self._filling.count + sum(batch.count for batch in self._full)
            self._filling = _Batch()
            self._full.clear()
            self._full_bytes = 0
            if left:
                self._drop(left, "shutdown")
        if left:
            _log.warning("%d spans were not exported to %s before the shutdown", left, self._shown_url)
        self._http.clear()

    def _run(self) -> None:
        # Were urllib3 instrumented, every export would make a span to be exported.
        with suppress_instrumentation():
            while (batch := self._next()) is not None:
                self._send(batch)

    def _next(self) -> _Batch | None:
        """The next batch to send, waited for; nothing when it is time to end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._full or self._flushing or self._closing.is_set(), self._delay)
                metrics.SPANS_QUEUED.set(self._added - self._settled)
                if self._full:
                    batch = self._full.popleft()
                    self._full_bytes -= batch.size
                    return batch
                if self._filling.count:
                    batch, self._filling = self._filling, _Batch()
                    return batch
                if self._closing.is_set():
                    return None
                self._flushing = False

    def _send(self, batch: _Batch) -> None:
        """Send until it is accepted, refused for good, or too late."""
        body = otlp.request(self._resource, batch.scopes)
        attempt = 0
        while True:
            try:
                answer = self._http.request("POST", self._url, body=body, headers=self._headers, redirect=False)
            except urllib3.exceptions.HTTPError as error:
                problem = type(error).__name__
            else:
                if 200 <= answer.status < 300:
                    rejected = min(otlp.rejected_spans(answer.data), batch.count)
                    self._settle(batch.count - rejected, rejected, "refused")
                    return
                problem = f"HTTP {answer.status}"
                if answer.status not in _TRY_AGAIN:
                    self._settle(0, batch.count, "refused")
                    self._warn(problem)
                    return
            self._warn(problem)
            wait = min(_BACKOFF[min(attempt, len(_BACKOFF) - 1)], self._deadline - time.monotonic())
            attempt += 1
            if self._closing.is_set():
                # The shutdown does not wait for a collector that does not answer.
                self._settle(0, batch.count, "shutdown")
                return
            self._closing.wait(wait)

    def _settle(self, exported: int, dropped: int, reason: str) -> None:
        with self._changed:
            self._settled += exported
            if exported:
                metrics.SPANS_EXPORTED.inc(exported)
            if dropped:
                self._drop(dropped, reason)
            self._changed.notify_all()

    def _drop(self, count: int, reason: str) -> None:
        self._settled += count
        self._dropped_since += count
        metrics.SPANS_DROPPED.labels(reason).inc(count)

    def _warn(self, problem: str) -> None:
        now = time.monotonic()
        if now - self._warned_at < _WARN_EVERY:
            return
        self._warned_at = now
        with self._lock:
            dropped, self._dropped_since = self._dropped_since, 0
        _log.warning(
            "spans cannot be exported to %s: %s; the service is not affected; %d spans dropped since the last warning",
            self._shown_url,
            problem,
            dropped,
        )


def _traces_url(endpoint: str) -> str:
    base = endpoint.rstrip("/")
    return base if base.endswith("/v1/traces") else f"{base}/v1/traces"


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
