"""Score completions at an HTTP endpoint: JSON out, numbers back.

    POST <url>    {"prompts": [...], "completions": [...], "<column>": [...]}
    200           {"rewards": [0.5, null, ...]}        one number, or null, for each completion

The token in the environment variable HFSTACK_REWARD_TOKEN, where it is set, is sent as
`Authorization: Bearer`.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger

logger = get_logger(__name__)

_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class RemoteReward:
    """Asks an endpoint for rewards, several requests at a time."""

    url: str
    """http:// or https:// address that answers POST."""
    timeout_s: float = 30.0
    """Seconds without a byte after which a request counts as failed."""
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
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
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

        # `map` gives answers in the order of the requests, whichever comes first.
        with ThreadPoolExecutor(
            max_workers=self.max_concurrency, thread_name_prefix="reward"
        ) as pool:
            answers = list(pool.map(self._ask, bodies, [span.start for span in spans]))

        return [value for answer in answers for value in answer]

    def _ask(self, body: dict[str, list[Any]], first: int) -> list[float | None]:
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
                with _OPENER.open(request, timeout=self.timeout_s) as response:
                    return self._read(response.read(_MAX_ANSWER_BYTES + 1), count, place)
            except urllib.error.HTTPError as error:
                with error:
                    problem = f"status {error.code}: {_first_characters(error.read(2000))}"
                if error.code not in _RETRIED_STATUS:
                    raise DataError(
                        f"reward endpoint {self.name} refused {place} with {problem}"
                    ) from None
                asked_s = error.headers.get("Retry-After", "")
                wait_s = min(float(asked_s), 60.0) if asked_s.isdigit() else wait_s
            except (OSError, HTTPException) as error:  # timeouts, refused and broken connections
                cause = getattr(error, "reason", error)
                problem = str(cause)
                if isinstance(cause, TimeoutError):
                    problem = f"timeout after {self.timeout_s} s"

            if attempt < self.retries:
                logger.warning(
                    "reward endpoint %s: %s; again in %.1f s", self.name, problem, wait_s
                )
                time.sleep(wait_s)
                wait_s *= 2

        tries = f"{self.retries + 1} attempt{'s' if self.retries else ''}"
        raise DataError(
            f"reward endpoint {self.name} gave no rewards for {place} in {tries}; the last: "
            f"{problem}"
        )

    def _read(self, answer: bytes, count: int, place: str) -> list[float | None]:
        """Return the numbers of an answer."""
        # An endpoint is not trusted: what it sends is judged before it is used.
        if len(answer) > _MAX_ANSWER_BYTES:
            raise DataError(
                f"reward endpoint {self.name}: the answer for {place} is over {_MAX_ANSWER_BYTES} "
                "bytes"
            )

        try:
            values = json.loads(answer)
        except ValueError:
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

        return values


def _first_characters(answer: bytes) -> str:
    return " ".join(answer.decode(errors="replace").split())[:200]


# Without the handler that follows redirects: it would turn the POST into a GET and carry the token
# to another host.
_OPENER = urllib.request.OpenerDirector()
for _handler in (
    urllib.request.ProxyHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPErrorProcessor,
):
    _OPENER.add_handler(_handler())
