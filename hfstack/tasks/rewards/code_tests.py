"""Reward answers that pass their tests, run in the sandbox."""

from collections.abc import Sequence
from typing import Any

from hfstack.errors import DataError
from hfstack.sandbox.run import Sandbox
from hfstack.tasks.code.problems import read_problems
from hfstack.tokens.turns import extract_text


class CodeTests:
    """1 for an answer whose program passes the tests of its row, else 0.

    Rows have `prompt` and `test`, and perhaps `entry_point` (hfstack/tasks/code/problems.py). The
    prompt of a conversation is its last turn.
    """

    __name__ = "code_tests"

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """Return 1 or 0 for each completion.

        Raises:
            DataError: the rows have no tests.
        """
        if "test" not in columns:
            found = ", ".join(sorted(columns)) or "none"
            raise DataError(f"code_tests reads the column 'test'; the rows have: {found}")
        points = columns.get("entry_point") or [None] * len(prompts)
        rows = [
            {"prompt": _asked(prompt), "test": test, "entry_point": point}
            for prompt, test, point in zip(prompts, columns["test"], points, strict=True)
        ]
        problems = read_problems(rows, "the prompts")
        programs = [
            problem.program(extract_text(answer))
            for problem, answer in zip(problems, completions, strict=True)
        ]

        # a group often has the same answer several times, and a program is run once
        different = list(dict.fromkeys(programs))
        outcomes = dict(zip(different, self.sandbox.run_all(different), strict=True))
        return [float(outcomes[program].passed) for program in programs]


def _asked(prompt: Any) -> str:
    """Return what was asked: of a conversation its last turn."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
