"""Reward answers by the demo's gold rule, where there is no reward model."""

from typing import Any

from hfstack.demo.rules import gold_score
from hfstack.tokens.chat import text_of


def obeys(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Score by the demo's gold rule, 0 to 1: does the story obey the instruction?"""
    return [
        gold_score(text_of(prompt), text_of(answer))
        for prompt, answer in zip(prompts, completions, strict=True)
    ]
