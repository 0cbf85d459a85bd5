"""Score completions at an HTTP endpoint: JSON out, numbers back.

    POST <url>    {"prompts": [...], "completions": [...], "<column>": [...]}
    200           {"rewards": [0.5, null, ...]}        one number, or null, for each completion

The token in the environment variable HFSTACK_REWARD_TOKEN, where it is set, is sent as
`Authorization: Bearer`.
"""

import contextlib
import http.client
import json
import math
import os
import queue
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from hfstack.errors import ConfigError, DataError
from hfstack.json_forms import DoubledKeyError, unique_keys
from hfstack.logs import get_logger

logger = get_logger(__name__)

_ANSWER_BYTES, _ANSWER_BYTES_OF_ONE = 1 << 20, 1 << 12
_RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class RemoteReward:
    """Asks an endpoint for rewards, several requests at a time."""

    url: str
    """http:// or https:// address that answers POST."""
    timeout_s: float = 30.0
    """Seconds within which a request has to be answered in full."""
    retries: int = 3
    """Further attempts after a timeout, a lost connection, or status 408, 425, 429 or 5xx."""
    first_wait_s: float = 0.5
    """Seconds before the first retry; doubled each time, unless the endpoint says Retry-After."""
    max_concurrency: int = 4
    """Requests that are under way at the same time."""
    batch_size: int = 16
    """Completions of one request."""
    columns: tuple[str, ...] = ()
    """Columns of the rows that are sent along."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            is_address = bool(parts.hostname) and parts.port != 0
        except ValueError:  # no number of a port, a bracket that is never closed
            parts, is_address = urlsplit(""), False
        is_plain = self.url.isascii() and self.url.isprintable() and " " not in self.url
        if not (is_address and is_plain and parts.scheme in ("http", "https")):
            raise ConfigError(
                f"reward endpoint {self.url!r}: only http:// and https:// URLs are called"
            )

        if parts.username or parts.password:
            raise ConfigError(
                f"reward endpoint at {parts.hostname}: a password in the URL would be saved to "
                "disk; put a token into the environment variable HFSTACK_REWARD_TOKEN"
            )

        for field in ("timeout_s", "max_concurrency", "batch_size"):
            if getattr(self, field) <= 0:
                raise ConfigError(
                    f"reward endpoint: {field} must be above 0, got {getattr(self, field)}"
                )

        if self.retries < 0:
            raise ConfigError(f"reward endpoint: retries must be 0 or more, got {self.retries}")

    @property
    def name(self) -> str:
        """Host and path, under which the reward is logged."""
        parts = urlsplit(self.url)
        return f"{parts.netloc}{parts.path}".rstrip("/")

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """Return the endpoint's number for each completion.

        Raises:
            DataError: it cannot be reached within the retries, refuses the request, or answers
                something else than one number or null for each completion; the message names the
                samples.
        """
        for column in self.columns:
            if column not in columns:
                found = ", ".join(sorted(columns)) or "none"
                raise DataError(
                    f"reward endpoint {self.name} is sent the column {column!r}; the rows have: "
                    f"{found}"
                )

        spans = [
            slice(first, min(first + self.batch_size, len(completions)))
            for first in range(0, len(completions), self.batch_size)
        ]
        bodies = [
            {"prompts": list(prompts[span]), "completions": list(completions[span])}
            | {column: list(columns[column][span]) for column in self.columns}
            for span in spans
        ]

        tasks = list(zip(bodies, [span.start for span in spans], strict=True))
        answers = _in_threads(self._ask, tasks, self.max_concurrency)
        return [value for answer in answers for value in answer]

    def _ask(
        self, body: dict[str, list[Any]], first: int, is_over: threading.Event
    ) -> list[float | None]:
        """Send one request until it is answered; `first` is the index of its first sample."""
        count = len(body["completions"])
        place = f"samples {first + 1} to {first + count}"
        headers = {"Content-Type": "application/json", "Accept": "application/json"}

        if token := os.environ.get("HFSTACK_REWARD_TOKEN"):
            headers["Authorization"] = f"Bearer {token}"
        data = json.dumps(body, ensure_ascii=False).encode()
        request = urllib.request.Request(self.url, data=data, headers=headers, method="POST")
        wait_s, problem = self.first_wait_s, ""

        for attempt in range(self.retries + 1):
            try:
                status, answer, asked_s = self._send(request, self._answer_limit(count) + 1)
                if 200 <= status < 300:
                    return self._read(answer, first, count)
                problem = f"status {status}: {_first_characters(answer)}"
                if status not in _RETRIED_STATUS:
                    raise DataError(f"reward endpoint {self.name} refused {place} with {problem}")
                is_number = asked_s.isascii() and asked_s.isdigit()
                wait_s = min(float(asked_s), 60.0) if is_number else wait_s
            except (OSError, http.client.HTTPException) as error:  # refused, broken connections
                cause = getattr(error, "reason", error)
                is_late = isinstance(cause, TimeoutError)
                problem = f"timeout after {self.timeout_s} s" if is_late else str(cause)

            if attempt < self.retries:
                logger.warning(
                    "reward endpoint %s: %s; again in %.1f s", self.name, problem, wait_s
                )
                is_over.wait(wait_s)
                wait_s *= 2

        tries = f"{self.retries + 1} attempt{'s' if self.retries else ''}"
        raise DataError(
            f"reward endpoint {self.name} gave no rewards for {place} in {tries}; the last: "
            f"{problem}"
        )

    def _send(self, request: urllib.request.Request, most_bytes: int) -> tuple[int, bytes, str]:
        """Return status, body and Retry-After of an answer.

        Raises OSError or HTTPException where none arrives in time.
        """
        with _Deadline(self.timeout_s) as deadline:
            try:
                try:
                    response = deadline.open(request)
                except urllib.error.HTTPError as error:
                    response = error
                with response:
                    answer = response.read(most_bytes)
                    missing = getattr(response, "length", None)
                if missing and len(answer) < most_bytes:
                    raise http.client.IncompleteRead(answer, missing)
            except (OSError, http.client.HTTPException):
                if deadline.passed:
                    raise TimeoutError from None
                raise
        # A body without a length ends where the connection is cut.
        if deadline.passed:
            raise TimeoutError
        return response.status or 0, answer, response.headers.get("Retry-After", "")

    def _answer_limit(self, count: int) -> int:
        """Return how many bytes an answer for so many samples may have."""
        return _ANSWER_BYTES + _ANSWER_BYTES_OF_ONE * count

    def _read(self, answer: bytes, first: int, count: int) -> list[float | None]:
        """Return the numbers of an answer."""
        place = f"samples {first + 1} to {first + count}"
        # An endpoint is not trusted: what it sends is judged before it is used.
        if len(answer) > (limit := self._answer_limit(count)):
            raise DataError(
                f"reward endpoint {self.name}: the answer for {place} is over {limit} bytes"
            )

        try:
            values = json.loads(answer, object_pairs_hook=unique_keys)
        except DoubledKeyError as error:
            raise DataError(
                f"reward endpoint {self.name}: in the answer for {place} {error}"
            ) from None
        except (ValueError, RecursionError):
            raise DataError(
                f"reward endpoint {self.name}: the answer for {place} is not JSON: "
                f"{_first_characters(answer)!r}"
            ) from None

        if isinstance(values, dict):
            values = values.get("rewards")
        if not isinstance(values, list):
            raise DataError(
                f'reward endpoint {self.name}: the answer for {place} lacks a list under "rewards"'
            )

        if len(values) != count:
            raise DataError(
                f"reward endpoint {self.name} returned {len(values)} values for {place}, which are "
                f"{count}"
            )

        for index, value in enumerate(values):
            if not _is_reward(value):
                shown = json.dumps(value, ensure_ascii=False)[:40]
                raise DataError(
                    f"reward endpoint {self.name} returned {shown} for sample {first + index + 1}, "
                    "not a finite number or null"
                )
        return [value if value is None else float(value) for value in values]


def _is_reward(value: Any) -> bool:
    """Return whether a value is null or a finite number, and not true or "1.0"."""
    if value is None:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _first_characters(answer: bytes) -> str:
    return " ".join(answer.decode(errors="replace").split())[:200]


def _in_threads(
    call: Callable[..., list[float | None]], tasks: list[tuple[Any, ...]], count: int
) -> list[list[float | None]]:
    """Call a function with each task in so many threads; return the results in order.

    A signal that ends the process ends the threads as well: an executor would wait for them. The
    function gets, after the values of its task, the event that no further result is wanted.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    is_over = threading.Event()
    for index in range(len(tasks)):
        waiting.put(index)

    def work() -> None:
        while not is_over.is_set():
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((index, call(*tasks[index], is_over), None))
            except BaseException as error:  # raised again by the thread that waits
                done.put((index, None, error))

    for number in range(min(count, len(tasks))):
        threading.Thread(target=work, name=f"reward-{number}", daemon=True).start()

    results: list[list[float | None]] = [[]] * len(tasks)
    try:
        for _ in tasks:
            index, result, error = done.get()
            if error is not None:
                raise error
            results[index] = result
    finally:
        is_over.set()
    return results


class _Connection(http.client.HTTPConnection):
    """A connection that is cut when the time of its request is over."""

    deadline: "_Deadline"

    def connect(self) -> None:
        super().connect()
        self.deadline.watch(self.sock)


class _TlsConnection(http.client.HTTPSConnection, _Connection):
    """The same over TLS, whose handshake is part of the time."""


class _Deadline(urllib.request.AbstractHTTPHandler):
    """Opens one request, and cuts its connection when its time is over.

    A timeout of the socket alone would begin again with each byte.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.passed = False
        self._seconds = seconds
        self._watched: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *unused: Any) -> None:
        self._timer.cancel()
        for each in self._watched:
            each.close()

    def open(self, request: urllib.request.Request) -> Any:
        """Send a request; return its response as urllib does."""
        # Without the handler that follows redirects: it would turn the POST into a GET and carry
        # the token to another host.
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            self,
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            opener.add_handler(handler)
        return opener.open(request, timeout=self._seconds)

    def http_open(self, request: urllib.request.Request) -> Any:
        """Open http:// URLs; called by urllib by its name."""
        return self.do_open(self._connection_class(_Connection), request)

    def https_open(self, request: urllib.request.Request) -> Any:
        """Open https:// URLs; called by urllib by its name."""
        return self.do_open(self._connection_class(_TlsConnection), request)

    http_request = urllib.request.AbstractHTTPHandler.do_request_
    https_request = urllib.request.AbstractHTTPHandler.do_request_

    def watch(self, connected: socket.socket) -> None:
        """Cut this socket as well; a copy, because TLS takes the socket itself away."""
        self._watched.append(connected.dup())
        if self.passed:
            self._cut()

    def _connection_class(self, kind: type[_Connection]) -> Any:
        def connect(host: str, **options: Any) -> _Connection:
            connection = kind(host, **options)
            connection.deadline = self
            return connection

        return connect

    def _cut(self) -> None:
        self.passed = True
        for each in self._watched:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
