"""Generate small Python functions with a description and tests.

Each function is a chain of one to three steps on a number, a list or a text. What it has to return
is computed by the steps themselves, so that a test is right whatever the code says.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class FunctionArgs:
    """Small functions, for recipes that train on code."""

    functions: int = 0
    """Rows of functions.jsonl (prompt, test, entry_point, canonical_solution; text is both of
    prompt and solution), and a tenth as many others in functions_test.jsonl; 0 writes none.
    """


@dataclass(frozen=True)
class _Step:
    """What one line of a function does: in words, in code, and done."""

    words: str
    code: str
    do: Callable[[Any], Any]


_NUMBER_STEPS: list[Callable[[int], _Step]] = [
    lambda n: _Step(f"add {n}", f"x = x + {n}", lambda x: x + n),
    lambda n: _Step(f"subtract {n}", f"x = x - {n}", lambda x: x - n),
    lambda n: _Step(f"multiply by {n}", f"x = x * {n}", lambda x: x * n),
    lambda n: _Step(f"take the remainder by {n}", f"x = x % {n}", lambda x: x % n),
    lambda n: _Step("square it", "x = x * x", lambda x: x * x),
    lambda n: _Step("change the sign", "x = -x", lambda x: -x),
    lambda n: _Step(f"take at most {n}", f"x = min(x, {n})", lambda x: min(x, n)),
]

# of lists of whole numbers
_LIST_STEPS: list[Callable[[int], _Step]] = [
    lambda n: _Step(f"add {n} to each", f"x = [y + {n} for y in x]", lambda x: [y + n for y in x]),
    lambda n: _Step(
        f"multiply each by {n}", f"x = [y * {n} for y in x]", lambda x: [y * n for y in x]
    ),
    lambda n: _Step(
        f"keep those above {n}", f"x = [y for y in x if y > {n}]", lambda x: [y for y in x if y > n]
    ),
    lambda n: _Step(
        "keep the even ones",
        "x = [y for y in x if y % 2 == 0]",
        lambda x: [y for y in x if y % 2 == 0],
    ),
    lambda n: _Step("sort them", "x = sorted(x)", sorted),
    lambda n: _Step("reverse them", "x = x[::-1]", lambda x: x[::-1]),
    lambda n: _Step(f"keep the first {n}", f"x = x[:{n}]", lambda x: x[:n]),
]

# of texts
_TEXT_STEPS: list[Callable[[int], _Step]] = [
    lambda n: _Step("reverse it", "x = x[::-1]", lambda x: x[::-1]),
    lambda n: _Step("make it upper case", "x = x.upper()", lambda x: x.upper()),
    lambda n: _Step(f"keep the first {n} letters", f"x = x[:{n}]", lambda x: x[:n]),
    lambda n: _Step(f"drop the first {n} letters", f"x = x[{n}:]", lambda x: x[n:]),
    lambda n: _Step(f"repeat it {n} times", f"x = x * {n}", lambda x: x * n),
]
_INPUTS: dict[str, Sequence[Any]] = {
    "number": (-7, 0, 3, 12, 25),
    "numbers": ([], [4, -2, 9], [1, 2, 3, 4, 5, 6], [8, 8, -3, 10, 0, 7]),
    "text": ("", "a", "river", "Cloudberry"),
}
_STEPS_BY_KIND = {"number": _NUMBER_STEPS, "numbers": _LIST_STEPS, "text": _TEXT_STEPS}


def functions(seed: int, count: int, *, test: bool = False) -> Iterator[dict[str, str]]:
    """Yield rows; row n of a seed is the same however many are asked for.

    Args:
        seed: of the rows.
        count: how many.
        test: those that are never trained on: which of the two a function belongs to is decided by
            its description alone, so that no seed has a function on both sides.
    """
    for index in range(count):
        draw = random.Random(f"{seed} {index} {test}")
        row = _draw_function(draw, index)
        while _is_test(row["prompt"]) != test:
            row = _draw_function(draw, index)
        yield row


def _is_test(prompt: str) -> bool:
    """Return whether a function is one of the tenth that is for tests."""
    return zlib.crc32(prompt.encode()) % 10 == 0


def _draw_function(draw: random.Random, index: int) -> dict[str, str]:
    """Return one row."""
    kind = draw.choice(sorted(_STEPS_BY_KIND))
    steps = [
        draw.choice(_STEPS_BY_KIND[kind])(draw.randint(2, 9))
        for _ in range(draw.choice((1, 2, 2, 3)))
    ]
    words = ", then ".join(step.words for step in steps)
    prompt = f'def solve(x):\n    """Take a {kind}: {words}."""\n'.replace(
        "a numbers", "a list of numbers"
    )
    lines = [*(step.code for step in steps), "return x"]

    tests = []
    for given in _INPUTS[kind]:
        value = given
        for step in steps:
            value = step.do(value)
        tests.append(f"assert solve({given!r}) == {value!r}\n")
    solution = "".join(f"    {line}\n" for line in lines)
    return {
        "task_id": f"demo/{index}",
        "prompt": prompt,
        "canonical_solution": solution,
        "test": "".join(tests),
        "entry_point": "solve",
        "text": prompt + solution,
    }
