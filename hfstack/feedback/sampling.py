"""Let models answer prompts; choose pairs of which reward models are unsure."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from accelerate import Accelerator
from trl import ModelConfig

from hfstack.errors import ConfigError
from hfstack.feedback.items import Answered
from hfstack.feedback.kinds import Item
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.tasks.causal_lm.generate import generate_from_texts
from hfstack.tasks.causal_lm.sampling import SamplingArgs, check_sampling
from hfstack.tasks.rewards.reward_model import RewardModel

# Returns the reward of each answer.
ScoreAnswers = Callable[[Sequence[Any], Sequence[str]], Sequence[float]]


@dataclass
class AnswerArgs(SamplingArgs):
    """Who answers, how, and which of the answers people see."""

    other_model: str | None = None
    """A second model: every pair then has one answer of each."""
    answers_per_prompt: int = 2
    """Answers that each model gives to a prompt."""
    max_new_tokens: int = 200
    """Longest sampled answer, in tokens."""
    select: str = "random"
    """Which pairs are judged: random, or uncertain, those of which --reward_models are least sure.
    """
    reward_models: list[str] = field(default_factory=list)
    """One reward model, or a small ensemble, that chooses with --select uncertain."""
    max_items: int | None = None
    """Most items of the project; all that there are by default."""
    pairs_per_prompt: int = 1
    """Most pairs of one prompt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sampling(max_new_tokens=self.max_new_tokens)
        if self.select not in ("random", "uncertain"):
            raise ConfigError(f"--select must be random or uncertain, got {self.select!r}")
        if self.select == "uncertain" and not self.reward_models:
            raise ConfigError("--select uncertain needs --reward_models: who is to be unsure?")
        if self.select == "random" and self.reward_models:
            raise ConfigError("--reward_models is read with --select uncertain alone")


def answer_prompts(
    model_args: ModelConfig, prompts: Sequence[str], args: AnswerArgs, *, chat: bool
) -> list[Answered]:
    """Return prompts with the answers of one or two models."""
    names = [model_args.model_name_or_path, *([args.other_model] if args.other_model else [])]
    answered = [Answered(prompt, [], []) for prompt in prompts]
    for maker, name in enumerate(names):
        own_args = replace(model_args, model_name_or_path=name)
        tokenizer = load_tokenizer(own_args)
        model: Any = load_causal_lm(own_args, tokenizer)
        asked = [prompt for prompt in prompts for _ in range(args.answers_per_prompt)]

        completions = generate_from_texts(
            model.to(Accelerator().device).eval(),
            tokenizer,
            asked,
            kind="chat" if chat else "prompt",
            max_new_tokens=args.max_new_tokens,
            **args.sampling(),
            batch_size=64,
        )
        for place, one in enumerate(completions):
            answered[place // args.answers_per_prompt].answers.append(one.completion)
            answered[place // args.answers_per_prompt].makers.append(maker)

    if not chat:
        return answered
    # as turns, which is how the models that learn from them read them
    return [
        Answered(
            [{"role": "user", "content": one.prompt}],
            [[{"role": "assistant", "content": text}] for text in one.answers],
            one.makers,
        )
        for one in answered
    ]


def uncertainty(margins: Sequence[float]) -> float:
    """Return how unsure an ensemble is of a pair, in bits, from 0 to 1.

    The entropy of the mean of the models' probabilities that the first answer is better: high where
    each is unsure, and where they contradict each other.
    """
    chance = fmean(1 / (1 + math.exp(-max(-500.0, min(500.0, margin)))) for margin in margins)
    return sum(-p * math.log2(p) for p in (chance, 1 - chance) if p > 0)


def choose_uncertain(
    items: Sequence[Item], scorers: Sequence[ScoreAnswers], *, per_prompt: int, most: int | None
) -> list[Item]:
    """Return the pairs of which the scorers are least sure, the most unsure first."""
    prompts = [item.prompt for item in items]
    texts = [[_plain(item.answers[side]) for item in items] for side in (0, 1)]
    margins: list[list[float]] = [[] for _ in items]
    for score in scorers:
        rewards = [score(prompts, side) for side in texts]
        for own, first, second in zip(margins, *rewards, strict=True):
            own.append(first - second)

    found = [
        replace(item, priority=uncertainty(own)) for item, own in zip(items, margins, strict=True)
    ]
    found.sort(key=lambda item: -item.priority)
    kept, taken = [], dict.fromkeys(map(json.dumps, prompts), 0)
    for item in found:
        key = json.dumps(item.prompt)
        if taken[key] < per_prompt:
            taken[key] += 1
            kept.append(item)
    return kept[:most]


def load_scorers(names: Sequence[str]) -> list[ScoreAnswers]:
    """Return the reward models as functions of prompts and answers."""
    return [RewardModel(name, device=Accelerator().device).score for name in names]


def _plain(answer: Any) -> str:
    """Return an answer's text, as `RewardModel.score` reads it."""
    return answer if isinstance(answer, str) else "\n".join(turn["content"] for turn in answer)
