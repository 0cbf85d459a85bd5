"""pass@k by hand and by counting; programs made of answers; the reward of passing tests."""

import itertools
import math
from typing import Any

import pytest

from hfstack.demo.functions import functions
from hfstack.errors import ConfigError, DataError
from hfstack.sandbox.run import Limits, Outcome, Program, Sandbox
from hfstack.tasks.code.pass_at_k import pass_at_k, summarise
from hfstack.tasks.code.problems import Problem, read_answer, read_problems
from hfstack.tasks.rewards.code_tests import CodeTests
from hfstack.tasks.rewards.prepare import prepare_rewards

PROMPT = 'def add(a, b):\n    """Add two numbers."""\n'


def test_pass_at_k_of_hand_worked_cases() -> None:
    # 2 of 5 pass: a pair misses both in C(3, 2) = 3 of C(5, 2) = 10 cases
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4)
    assert pass_at_k(5, 0, 3) == 0.0 and pass_at_k(5, 5, 1) == 1.0
    assert pass_at_k(4, 3, 2) == 1.0  # one failure cannot fill a pair
    # the plain estimate is biased: 1 - 0.6 ** 2
    assert pass_at_k(5, 2, 2) > 1 - 0.6**2


def test_pass_at_k_is_the_share_of_sets_with_one_that_passes() -> None:
    for samples in range(1, 8):
        for passed in range(samples + 1):
            right = [index < passed for index in range(samples)]
            for k in range(1, samples + 1):
                sets = list(itertools.combinations(right, k))
                share = sum(map(any, sets)) / len(sets)
                binomial = 1 - math.comb(samples - passed, k) / math.comb(samples, k)
                assert pass_at_k(samples, passed, k) == pytest.approx(share)
                assert pass_at_k(samples, passed, k) == pytest.approx(binomial)


def test_pass_at_k_of_many_samples_does_not_overflow_and_needs_k_of_them() -> None:
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01)
    with pytest.raises(ConfigError, match="pass@3 needs at least 3 answers"):
        pass_at_k(2, 1, 3)


def test_the_interval_is_over_problems() -> None:
    found = summarise([(10, 10)] * 20 + [(10, 0)] * 20, 1)
    assert found["pass_at_1"] == 0.5
    assert 0.3 < found["pass_at_1_low"] < 0.4 and 0.6 < found["pass_at_1_high"] < 0.7
    sure = summarise([(1, 1)] * 10, 1)
    assert sure["pass_at_1"] == 1.0 and sure["pass_at_1_low"] < 0.8


BODY = "    return a + b"
LONG = "    x = (a +\n         b\n    )\n    return x"
WHOLE = "def add(a, b):\n    return a + b"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (f"{BODY}\n", f"{PROMPT}{BODY}"),
        (f"{BODY}\n\ndef next():\n    pass", f"{PROMPT}{BODY}"),
        (f"{BODY}\n# Next\nx = 1", f"{PROMPT}{BODY}"),
        (LONG, f"{PROMPT}{LONG}"),
        (f"Sure:\n```python\n{WHOLE}\n```\nDone.", WHOLE),
        (f"```\n{BODY}\n```", f"{PROMPT}{BODY}"),
    ],
)
def test_an_answer_becomes_the_code_that_was_asked_for(answer: str, code: str) -> None:
    assert read_answer(PROMPT, answer).rstrip() == code.rstrip()


def run(program: Program) -> None:
    """Run a program and its tests in one interpreter, here."""
    exec(compile(f"{program.source}\n\n{program.test}", "p", "exec"), {})  # noqa: S102


@pytest.mark.parametrize(
    ("prompt", "preamble"),
    [
        (PROMPT, ""),
        (f"import math\n\ndef half(x):\n    return x / 2\n\n{PROMPT}", "import math\ndef half"),
        ("from typing import List\n\n# Add.\ndef add(a, b):\n", "from typing import List"),
        ("import math\nclass A:\n    x = 1\ndef add(a, b):", "import math"),
        ("Write a function that adds two numbers.", ""),
        ("import math\n# Add two numbers.", ""),
    ],
)
def test_the_helpers_of_a_prompt_are_those_of_its_tests(prompt: str, preamble: str) -> None:
    found = Problem("a", prompt, "assert add(1, 2) == 3").program("    return a + b").preamble
    assert found.startswith(preamble) and bool(found) == bool(preamble)
    assert "add" not in found and "class" not in found


def test_the_check_of_humaneval_is_called_and_plain_tests_stand_alone() -> None:
    test = "def check(candidate):\n    assert candidate(1, 2) == 3"
    program = Problem("a", PROMPT, test, "add").program("    return a + b")
    run(program)
    assert program.test.rstrip().endswith("check(add)") and program.entry_point == "add"
    plain = Problem("a", PROMPT, "assert add(1, 2) == 3", "add").program("    pass")
    assert "check(" not in plain.test
    with pytest.raises(DataError, match=r"rows\.jsonl: row 2 has no 'test'.*it has: prompt"):
        read_problems([{"prompt": "a", "test": "b"}, {"prompt": "a", "test": None}], "rows.jsonl")


class Noted(Sandbox):
    """Passes programs with a plus, and notes what it ran."""

    def run_all(self, programs: Any) -> list[Outcome]:
        ran.append(list(programs))
        return [Outcome("+" in program.source) for program in programs]


ran: list[list[Program]] = []


def test_the_reward_is_1_where_the_tests_pass_and_runs_a_program_once() -> None:
    reward = prepare_rewards([CodeTests(Noted(isolated=True))])[0]
    answers = ["    return a + b", "    return a - b", "    return a + b"]
    columns = {"test": ["assert add(1, 2) == 3"] * 3, "entry_point": ["add"] * 3}
    ran.clear()
    assert reward(prompts=[PROMPT] * 3, completions=answers, **columns) == [1.0, 0.0, 1.0]
    assert len(ran[0]) == 2 and reward.__name__ == "code_tests"

    turns = [[{"role": "user", "content": PROMPT}]]
    said = [[{"role": "assistant", "content": "```python\ndef add(a, b):\n    return a + b\n```"}]]
    found = reward(prompts=turns, completions=said, test=["assert add(1, 2) == 3"])
    assert found == [1.0]
    with pytest.raises(DataError, match="reads the column 'test'; the rows have: answer"):
        reward(prompts=[PROMPT], completions=["x"], answer=["y"])


def test_demo_functions_pass_their_own_tests_and_no_others() -> None:
    rows = list(functions(0, 60))
    assert rows[:20] == list(functions(0, 20)) != list(functions(1, 20))
    assert len({row["prompt"] for row in rows}) > 50
    for problem, other in zip(read_problems(rows, "demo"), rows[1:], strict=False):
        run(problem.program(problem.solution or ""))
        if other["canonical_solution"] != problem.solution:
            with pytest.raises(Exception):  # noqa: B017 - an assertion, or a wrong type
                run(problem.program("    return None"))


def test_limits_name_what_the_system_bounds() -> None:
    assert Limits(seconds=0.2).as_rlimits()["CPU"] == 1
    assert Limits(processes=8).as_rlimits(others=40)["NPROC"] == 48
