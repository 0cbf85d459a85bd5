"""Read problems of programming, and make whole programs of a model's answers.

A row has a prompt and tests, by the names of HumanEval (Chen et al. 2021): `prompt`, `test`, and
perhaps `entry_point` (a `check(candidate)` in the test is called with it), `canonical_solution` and
`task_id`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfstack.errors import DataError

PROBLEM_COLUMNS = ("task_id", "prompt", "test", "entry_point", "canonical_solution")

_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)
# what begins a new statement of the file, where the function that was asked for is over
_NEXT_STATEMENT = re.compile(r"\n(?=[^\s#)\]}])|\n(?=#)")


@dataclass(frozen=True)
class Problem:
    """What is asked, and what the answer has to pass."""

    name: str
    prompt: str
    test: str
    entry_point: str | None = None
    solution: str | None = None

    def program(self, answer: str) -> str:
        """Return the whole program: the answer behind its prompt, and the tests.

        An answer in a fenced block stands for itself where it defines what was asked for.
        """
        code = read_answer(self.prompt, answer)
        call = f"\ncheck({self.entry_point})\n" if self._has_check() else "\n"
        return f"{code}\n\n{self.test}\n{call}"

    def _has_check(self) -> bool:
        return self.entry_point is not None and "def check(" in self.test


def read_answer(prompt: str, answer: str) -> str:
    """Return the code of an answer, its prompt included.

    Of a continuation, what follows the asked function is left out: a model that was trained on text
    goes on with the next function.
    """
    fenced = _FENCED.search(answer)
    if fenced is not None:
        code = fenced[1]
        return code if re.search(r"^(def|class) ", code, re.MULTILINE) else prompt + code

    if _is_open(prompt):
        end = _NEXT_STATEMENT.search(answer)
        answer = answer if end is None else answer[: end.start()]
    return prompt + answer


def _is_open(prompt: str) -> bool:
    """Return whether a prompt ends inside of a function, whose body the answer is."""
    lines = [line for line in prompt.splitlines() if line.strip()]
    return bool(lines) and (lines[-1].startswith((" ", "\t")) or lines[-1].rstrip().endswith(":"))


def read_problems(rows: Sequence[Mapping[str, Any]], place: str) -> list[Problem]:
    """Return the problems of rows.

    Args:
        place: what messages call the rows, such as their file.

    Raises:
        DataError: a row has no prompt or no test, or they are no texts.
    """
    found: list[Problem] = []
    for number, row in enumerate(rows, 1):
        for name in ("prompt", "test"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                has = ", ".join(key for key, value in row.items() if value is not None)
                raise DataError(
                    f"{place}: row {number} has no {name!r} (text), which --task code needs "
                    f"beside the prompt; it has: {has}"
                )
        found.append(
            Problem(
                name=str(row.get("task_id") or number),
                prompt=row["prompt"],
                test=row["test"],
                entry_point=row.get("entry_point"),
                solution=row.get("canonical_solution"),
            )
        )
    return found
