"""Score completions at an HTTP endpoint: JSON out, numbers back.

    POST <url>    {"prompts": [...], "completions": [...], "<column>": [...]}
    200           {"rewards": [0.5, null, ...]}        one number, or null, for each completion

The token in the environment variable HFSTACK_REWARD_TOKEN, where it is set, is sent as
`Authorization: Bearer`.
"""

import json
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hfstack.errors import ConfigError, DataError
from hfstack.json_forms import DoubledKeyError, unique_keys
from hfstack.tasks.rewards.endpoint import Endpoint, call_in_threads, first_characters

_ANSWER_BYTES, _ANSWER_BYTES_OF_ONE = 1 << 20, 1 << 12


@dataclass(frozen=True)
class RemoteReward(Endpoint):
    """Asks an endpoint for rewards, several requests at a time."""

    batch_size: int = 16
    """Completions of one request."""
    columns: tuple[str, ...] = ()
    """Columns of the rows that are sent along."""

    kind: ClassVar[str] = "reward endpoint"
    gives: ClassVar[str] = "rewards"
    token_variable: ClassVar[str] = "HFSTACK_REWARD_TOKEN"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size <= 0:
            raise ConfigError(f"reward endpoint: batch_size must be above 0, got {self.batch_size}")

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
        answers = call_in_threads(self._ask, tasks, self.max_concurrency)
        return [value for answer in answers for value in answer]

    def _ask(
        self, body: dict[str, list[Any]], first: int, is_over: threading.Event
    ) -> list[float | None]:
        """Ask for one batch; `first` is the index of its first sample."""
        count = len(body["completions"])
        place = f"samples {first + 1} to {first + count}"
        answer = self.ask(body, place, is_over, most_bytes=self._answer_limit(count) + 1)
        return self._read(answer, first, count)

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
                f"{first_characters(answer)!r}"
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
