"""Read problems of programming, and make whole programs of a model's answers.

A row has a prompt and tests, by the names of HumanEval (Chen et al. 2021): `prompt`, `test`, and
perhaps `entry_point` (a `check(candidate)` in the test is called with it), `canonical_solution` and
`task_id`.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfstack.errors import DataError
from hfstack.sandbox.run import Program

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

    def program(self, answer: str) -> Program:
        """Return the program, which is the answer behind its prompt, and its tests.

        An answer in a fenced block stands for itself where it defines what was asked for.
        """
        call = f"\ncheck({self.entry_point})\n" if self._has_check() else "\n"
        return Program(
            read_answer(self.prompt, answer),
            test=f"{self.test}\n{call}",
            preamble=_read_preamble(self.prompt),
            entry_point=self.entry_point,
        )

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


def _read_preamble(prompt: str) -> str:
    """Return what a prompt defines before its last function, which is asked for.

    Its imports and helper functions are the tests' own as well, whatever an answer makes of them.
    Its classes are not: what a test makes of them is handed to the answer. Nothing of a prompt that
    is no Python.
    """
    code = prompt
    if _is_open(prompt):
        last = prompt.rstrip().splitlines()[-1]
        # a body after the line that opens it, or beside the one that is there
        indent = len(last) - len(last.lstrip()) + (4 if last.rstrip().endswith(":") else 0)
        code = f"{prompt.rstrip()}\n{' ' * indent}pass\n"
    try:
        statements = ast.parse(code).body
    except (SyntaxError, ValueError):
        return ""
    while statements and not isinstance(statements[-1], (ast.FunctionDef, ast.ClassDef)):
        statements.pop()
    kept = [one for one in statements[:-1] if not isinstance(one, ast.ClassDef)]
    return "\n".join(map(ast.unparse, kept))


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
