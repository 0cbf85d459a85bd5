"""Ask an HTTP endpoint: in time, again where it fails, several at once.

What comes back is bytes; who asks judges them, because an endpoint is not trusted.
"""

import contextlib
import http.client
import json
import os
import queue
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger

logger = get_logger(__name__)

_RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Endpoint:
    """An address, and how long and how often it is asked."""

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

    kind: ClassVar[str] = "endpoint"
    """What messages call it."""
    gives: ClassVar[str] = "answer"
    """What it is asked for."""
    token_variable: ClassVar[str] = "HFSTACK_ENDPOINT_TOKEN"
    """Environment variable whose value, where it is set, is sent as `Authorization: Bearer`."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            is_address = bool(parts.hostname) and parts.port != 0
        except ValueError:  # no number of a port, a bracket that is never closed
            parts, is_address = urlsplit(""), False
        is_plain = self.url.isascii() and self.url.isprintable() and " " not in self.url
        if not (is_address and is_plain and parts.scheme in ("http", "https")):
            raise ConfigError(
                f"{self.kind} {self.url!r}: only http:// and https:// URLs are called"
            )

        if parts.username or parts.password:
            raise ConfigError(
                f"{self.kind} at {parts.hostname}: a password in the URL would be saved to "
                f"disk; put a token into the environment variable {self.token_variable}"
            )

        for field in ("timeout_s", "max_concurrency"):
            if getattr(self, field) <= 0:
                raise ConfigError(
                    f"{self.kind}: {field} must be above 0, got {getattr(self, field)}"
                )

        if self.retries < 0:
            raise ConfigError(f"{self.kind}: retries must be 0 or more, got {self.retries}")

    @property
    def name(self) -> str:
        """Return host and path, under which it is logged."""
        parts = urlsplit(self.url)
        return f"{parts.netloc}{parts.path}".rstrip("/")

    def ask(
        self, body: dict[str, Any], place: str, is_over: threading.Event, *, most_bytes: int
    ) -> bytes:
        """Send one request until it is answered; return the answer, not yet judged.

        Args:
            body: sent as JSON.
            place: what messages call the request.
            is_over: set when no answer is wanted any more.
            most_bytes: of the answer that are read.

        Raises:
            DataError: it cannot be reached within the retries, or refuses the request.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token := os.environ.get(self.token_variable):
            headers["Authorization"] = f"Bearer {token}"
        data = json.dumps(body, ensure_ascii=False).encode()
        request = urllib.request.Request(self.url, data=data, headers=headers, method="POST")
        wait_s, problem = self.first_wait_s, ""

        for attempt in range(self.retries + 1):
            try:
                status, answer, asked_s = self._send(request, most_bytes)
                if 200 <= status < 300:
                    return answer
                problem = f"status {status}: {first_characters(answer)}"
                if status not in _RETRIED_STATUS:
                    raise DataError(f"{self.kind} {self.name} refused {place} with {problem}")
                is_number = asked_s.isascii() and asked_s.isdigit()
                wait_s = min(float(asked_s), 60.0) if is_number else wait_s
            except (OSError, http.client.HTTPException) as error:  # refused, broken connections
                cause = getattr(error, "reason", error)
                is_late = isinstance(cause, TimeoutError)
                problem = f"timeout after {self.timeout_s} s" if is_late else str(cause)

            if attempt < self.retries:
                logger.warning("%s %s: %s; again in %.1f s", self.kind, self.name, problem, wait_s)
                is_over.wait(wait_s)
                wait_s *= 2

        tries = f"{self.retries + 1} attempt{'s' if self.retries else ''}"
        raise DataError(
            f"{self.kind} {self.name} gave no {self.gives} for {place} in {tries}; the last: "
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


def first_characters(answer: bytes) -> str:
    """Return the beginning of an answer in one line, for a message."""
    return " ".join(answer.decode(errors="replace").split())[:200]


def call_in_threads(
    call: Callable[..., Any], tasks: list[tuple[Any, ...]], count: int
) -> list[Any]:
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
        threading.Thread(target=work, name=f"asking-{number}", daemon=True).start()

    results: list[Any] = [None] * len(tasks)
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
