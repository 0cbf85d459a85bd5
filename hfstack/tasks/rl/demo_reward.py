"""Reward answers by the demo's gold rule, where there is no reward model."""

from typing import Any

from hfstack.demo.rules import gold_score
from hfstack.tokens.chat import extract_text


def obeys(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Score by the demo's gold rule, 0 to 1: does the story obey the instruction?"""
    return [
        gold_score(extract_text(prompt), extract_text(answer))
        for prompt, answer in zip(prompts, completions, strict=True)
    ]
