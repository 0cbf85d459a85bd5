"""Reward answers by the demo's gold rule, where there is no reward model."""

from typing import Any

from hfstack.demo.rules import gold_score, require_demo_prompts
from hfstack.tokens.turns import extract_text


def obeys(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Score by the demo's gold rule, 0 to 1: does the story obey the instruction?

    Raises:
        DataError: the prompts are not of the demo corpus.
    """
    asked = [extract_text(prompt) for prompt in prompts]
    require_demo_prompts(asked)
    return [
        gold_score(prompt, extract_text(answer))
        for prompt, answer in zip(asked, completions, strict=True)
    ]
