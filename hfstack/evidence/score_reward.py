"""Score a finished reward model on pairs by the functions of its training."""

import json
from collections.abc import Hashable, Sequence
from typing import Any

import numpy
from accelerate import Accelerator
from datasets import Dataset
from trl import ModelConfig

from hfstack.evidence.scored import ScoreArgs, Scored, Scorer, named
from hfstack.intervals import wins
from hfstack.models.context import context_length
from hfstack.models.loading import load_tokenizer
from hfstack.runs.rendering import check_rendering
from hfstack.tasks.preferences.data import follow_model, length_statistics, to_pairs
from hfstack.tasks.preferences.encode import encode_pairs
from hfstack.tasks.preferences.metrics import (
    accuracy_by_margin,
    calibration_bins,
    reward_metrics,
)
from hfstack.tasks.preferences.reward_model import load_reward_model, score_sequences
from hfstack.tasks.preferences.rows import (
    PreferenceArgs,
    answer_text,
    columns_read,
    number_columns,
)


def load_reward_scorer(args: ModelConfig, how: ScoreArgs, train: Dataset | None = None) -> Scorer:
    """Load a finished reward model.

    Args:
        train: pairs that say whether length alone would prefer the shorter answer, as in training;
            None for the rule that the longer one wins.

    Raises:
        CheckpointError: there is no reward model.
        ConfigError: the pairs are of another form than the model has learned.
    """
    tokenizer = load_tokenizer(args)
    model: Any = load_reward_model(args, tokenizer)
    model.to(Accelerator().device).eval()
    limits = [how.max_length, context_length(model.config), tokenizer.model_max_length]
    max_length = min(limit for limit in limits if limit)
    columns = follow_model(PreferenceArgs(), args)

    def score(rows: Dataset) -> Scored:
        pairs = to_pairs(rows, columns)
        chat = not isinstance(pairs[0]["prompt"], str)
        check_rendering(args.model_name_or_path, tokenizer, chat=chat)
        encoded, kept = encode_pairs(pairs, tokenizer, max_length=max_length, name="eval")
        pad = model.config.get_text_config().pad_token_id
        rewards = [
            score_sequences(
                model,
                encoded[f"{side}_ids"][:],
                pad_token_id=pad,
                batch_size=how.batch_size or 8,
            )
            for side in ("chosen", "rejected")
        ]
        shorter = train is not None and _shorter_wins(to_pairs(train, columns))
        scored = [pairs[index] for index in kept]
        places = _find_places(scored, rows, columns)
        return _as_scored(scored, rewards, places, shorter_wins=shorter)

    numbers = frozenset(number_columns(columns))
    return Scorer(columns_read(columns), score, purpose="preferences", numbers=numbers)


def _shorter_wins(pairs: Sequence[dict[str, Any]]) -> bool:
    return length_statistics(pairs)["chosen_longer_share"] < 0.5


def _find_places(
    pairs: Sequence[dict[str, Any]], rows: Dataset, columns: PreferenceArgs
) -> list[int]:
    """Return the row of the file that each pair is of; the first of equal ones.

    Pairs of rated answers are of the first row with their prompt.
    """
    found: dict[str, int] = {}
    for place, row in enumerate(rows.to_list()):
        sides = [row.get(columns.chosen_column), row.get(columns.rejected_column)]
        texts = [_last_text(value) for value in sides if value is not None]
        for key in ("\n".join(texts), _last_text(row.get(columns.prompt_column) or "")):
            found.setdefault(key, place)

    places: list[int] = []
    for pair in pairs:
        texts = [_last_text(pair[side]) for side in ("chosen", "rejected")]
        key = "\n".join(texts)
        places.append(found.get(key, found.get(_last_text(pair["prompt"]), 0)))
    return places


def _last_text(value: Any) -> str:
    """Return the last turn of an answer, which is the same however its row was read."""
    if isinstance(value, str):
        try:
            read = json.loads(value)
        except ValueError:
            return value.strip()
        value = read if isinstance(read, list) else value
    if isinstance(value, str):
        return value.strip()
    return answer_text(value[-1:]).strip() if isinstance(value, list) and value else str(value)


def _as_scored(
    pairs: list[dict[str, Any]],
    rewards: list[list[float]],
    places: list[int],
    *,
    shorter_wins: bool,
) -> Scored:
    chosen, rejected = rewards
    margins = [better - worse for better, worse in zip(chosen, rejected, strict=True)]
    lengths = {
        side: [len(answer_text(pair[side])) for pair in pairs] for side in ("chosen", "rejected")
    }
    prompts: list[Hashable] = [json.dumps(pair["prompt"]) for pair in pairs]
    right = numpy.array(wins(margins))
    margin_array = numpy.array(margins)
    losses = numpy.logaddexp(0, -margin_array)  # -log sigmoid, the loss of training

    def measure(indices: Sequence[int]) -> dict[str, float]:
        return reward_metrics(
            [chosen[i] for i in indices],
            [rejected[i] for i in indices],
            chosen_lengths=[lengths["chosen"][i] for i in indices],
            rejected_lengths=[lengths["rejected"][i] for i in indices],
            prompts=[prompts[i] for i in indices],
            shorter_wins=shorter_wins,
        )

    def resample(index: numpy.ndarray[Any, Any]) -> dict[str, float]:
        return {
            "accuracy": float(right[index].mean()),
            "margin": float(margin_array[index].mean()),
            "pair_loss": float(losses[index].mean()),
        }

    columns = ["from", "to", "pairs", "accuracy"]
    return Scored(
        metrics=named(measure(range(len(pairs)))) | {"eval_pair_loss": float(losses.mean())},
        main="accuracy",
        places=places,
        answers=[
            {**pair, "reward_chosen": better, "reward_rejected": worse}
            for pair, better, worse in zip(pairs, chosen, rejected, strict=True)
        ],
        measure=measure,
        resample=resample,
        right=[margin > 0 for margin in margins],
        units=prompts if len(set(prompts)) < len(prompts) else None,
        tables={
            "accuracy by margin": (columns, accuracy_by_margin(margins)),
            "calibration": (["P(right)", "accuracy", "pairs"], calibration_bins(margins)),
        },
        lower_is_better=frozenset({"pair_loss"}),
    )
