"""Say who a request comes from, and how many requests and bytes are allowed.

Each annotator, and the lead, has a token that is made from the store's key, so that links stay good
when the server is started again. It stands behind the # of a link: browsers never send that part,
so that it is in no log and no Referer.
"""

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

LEAD = ""  # the lead's name, which no annotator can have
MOST_BODY_BYTES = 256 * 1024
_MOST_BUCKETS = 10_000

Asgi = Callable[[Any, Any, Any], Awaitable[None]]


def token_of(key: str, name: str) -> str:
    """Return the token of an annotator, or of the lead."""
    return hmac.new(bytes.fromhex(key), f"token/{name}".encode(), hashlib.sha256).hexdigest()[:40]


def find_name(tokens: Mapping[str, str], token: str) -> str | None:
    """Return whose token it is, or None.

    Every token is compared, each in constant time, so that the answer's delay says nothing.

    Args:
        tokens: by name.
        token: what was sent.
    """
    found = None
    for name, own in tokens.items():
        if hmac.compare_digest(own.encode(), token.encode()):
            found = name
    return found


class RateLimit:
    """Allow each sender a number of requests a second, and more at once after a pause.

    Args:
        per_s: requests a second in the long run.
        burst: requests at once.
        clock: seconds, monotonic.
    """

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float]) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._left: dict[str, tuple[float, float]] = {}  # requests left, and when that was so

    def allows(self, sender: str) -> bool:
        """Return whether a request may pass now, and count it."""
        now = self._clock()
        left, since = self._left.get(sender, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._per_s)
        # Strangers with ever new addresses must not fill the memory.
        if sender not in self._left and len(self._left) >= _MOST_BUCKETS:
            self._left.clear()
        self._left[sender] = (left - 1 if left >= 1 else left, now)
        return left >= 1


class Guard:
    """An ASGI application that limits bodies to `MOST_BODY_BYTES` and adds headers.

    Args:
        app: what answers.
        headers: of every answer.
    """

    def __init__(self, app: Asgi, headers: dict[str, str]) -> None:
        self.app = app
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
            await send(message)

        headers = dict(scope["headers"])
        stated = headers.get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > MOST_BODY_BYTES:
            await _refuse(send_guarded)
            return

        # What states no length is counted as it comes.
        messages, size, more = [], 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
            if size > MOST_BODY_BYTES:
                await _refuse(send_guarded)
                return
            messages.append(message)

        async def replay() -> Any:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, replay, send_guarded)


async def _refuse(send: Any) -> None:
    body = json.dumps({"error": f"a request has at most {MOST_BODY_BYTES} bytes"}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
