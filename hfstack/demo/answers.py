"""Generate answers of unequal quality, so that preferences need no model."""

import random
from typing import Any

from hfstack.demo.instructions import instruction


def answers(seed: int, index: int, *, count: int = 4) -> tuple[dict[str, Any], list[str]]:
    """Return row `index` of `instruction` and `count` different answers, shuffled.

    They are drawn from the right answer, right answers to other instructions, the right one torn
    off in the middle, with its sentences in reverse order, with a sentence said three times, and
    without its last sentences.
    """
    row = instruction(seed, index)
    right: str = row["completion"]
    uniform = random.Random(f"answers/{seed}/{index}")

    sentences = [
        part.strip()
        for part in right.replace("! ", "!|").replace(". ", ".|").split("|")
        if part.strip()
    ]

    # one of each kind that the docstring names, so that a judge has something to tell apart
    words = right.split(" ")
    candidates = [
        right,
        " ".join(words[: max(1, int(len(words) * uniform.uniform(0.3, 0.9)))]),
        " ".join(reversed(sentences)),
        " ".join([*sentences[:1], *[sentences[len(sentences) // 2]] * 3, *sentences[1:]]),
        " ".join(sentences[: max(1, len(sentences) * 2 // 3)]),
    ]

    # Of a short answer some of these are the same text: other rows fill up.
    other = index
    while len(dict.fromkeys(candidates)) < max(6, count):
        other += 1 + uniform.randrange(1000)
        candidates.append(instruction(seed, other)["completion"])

    different = list(dict.fromkeys(candidates))
    chosen = [right, *uniform.sample(different[1:], count - 1)]
    uniform.shuffle(chosen)
    return row, chosen
