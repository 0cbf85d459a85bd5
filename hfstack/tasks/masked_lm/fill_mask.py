"""Fill the masks of texts with a masked language model's likeliest tokens.

Legend: n masks of one text, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from hfstack.errors import DataError
from hfstack.models.context import context_length
from hfstack.models.loading import load_masked_lm, load_tokenizer
from hfstack.tasks.masked_lm.masking import MASK_SPELLINGS
from hfstack.tasks.shared.predict import (
    NO_ANSWER,
    Predictor,
    answer_usable,
    problem_of_texts,
)


@dataclass(frozen=True)
class Filling:
    """Candidates for one mask of a text."""

    text: str
    mask: int  # which mask of the text, from 0
    position: int  # token position of that mask, [CLS] being 0
    candidates: list[tuple[str, float]]  # (token, probability), the likeliest first


def fill_pairs(
    model: PreTrainedModel, *, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> list[tuple[str, str]]:
    """Return (prompt, candidates of its mask) pairs, to look at while training."""
    return [
        (filling.text, f"mask {filling.mask + 1}: {describe_candidates(filling)}")
        for filling in fill_masks(model, tokenizer, prompts)
    ]


def load_fill_predictor(
    args: ModelConfig,
    *,
    columns: tuple[str | None, str | None],
    batch_size: int,
    max_length: int | None,
) -> Predictor:
    """Load a masked LM, and return what predicts rows: five tokens at each mask.

    Args:
        columns: of the text, by default `text`; the second is not used.
        batch_size: not used: texts are read one by one.
        max_length: tokens that a text may have; by default what the model reads.

    Raises:
        CheckpointError: there is no masked language model.
    """
    del batch_size
    tokenizer = load_tokenizer(args)
    model = load_masked_lm(args, tokenizer).eval()
    model.to(Accelerator().device)  # pyright: ignore[reportArgumentType]
    column = columns[0] or "text"

    def predict(rows: Sequence[dict[str, Any]], first_row: int = 1) -> list[dict[str, Any]]:
        del first_row
        answers: list[dict[str, Any]] = []
        for row in rows:
            try:
                fillings = fill_masks(model, tokenizer, [row[column]], max_length=max_length)
            except DataError as error:
                answers.append({NO_ANSWER: str(error)})
            else:
                answers.append({"masks": [_filling_as_row(filling) for filling in fillings]})
        return answers

    return answer_usable(predict, problem_of_texts([column], "--text_column"))


def _filling_as_row(filling: Filling) -> dict[str, Any]:
    candidates = [
        {"token": token, "probability": probability} for token, probability in filling.candidates
    ]
    return {"position": filling.position, "candidates": candidates}


def describe_candidates(filling: Filling) -> str:
    """Return the candidates and their probabilities in one line."""
    return ", ".join(f"{word} {probability:.3f}" for word, probability in filling.candidates)


def fill_masks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    top_k: int = 5,
    max_length: int | None = None,
) -> list[Filling]:
    """Return the likeliest tokens at each mask of each text, at the mask's position.

    `[MASK]` and `<mask>` both stand for the tokenizer's mask token. Several masks of one text are
    predicted side by side, each as if the others stayed masked; their probabilities are of one mask
    alone, not of the whole filling.

    Args:
        max_length: tokens that a text may have; by default what the model reads.

    Raises:
        DataError: the tokenizer has no mask token, a text has no mask, or it is longer than the
            model can read.
    """
    mask_id = cast(int | None, tokenizer.mask_token_id)
    if mask_id is None:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has no mask token, so it is not of a masked "
            "model"
        )

    found: list[Filling] = []
    for text in texts:
        spelled = text
        for spelling in MASK_SPELLINGS:
            spelled = spelled.replace(spelling, cast(str, tokenizer.mask_token))

        tokens = tokenizer(spelled, return_tensors="pt", verbose=False).to(model.device)
        ids: list[int] = tokens["input_ids"][0].tolist()
        positions = [position for position, token in enumerate(ids) if token == mask_id]
        if not positions:
            raise DataError(f"prompt {text!r} has no {tokenizer.mask_token} to fill")

        limit = max_length or context_length(model.config)
        if limit is not None and len(ids) > limit:
            raise DataError(
                f"prompt {text[:40]!r} has {len(ids)} tokens, but the model reads {limit}: "
                "shorten it"
            )

        with torch.no_grad():
            probabilities = model(**tokens).logits[0, positions].float().softmax(-1)  # (n, V)
        values, best = probabilities.topk(min(top_k, probabilities.shape[-1]))  # (n, top_k) each

        for index, position in enumerate(positions):
            words = [str(tokenizer.decode([token])) for token in best[index].tolist()]
            candidates = list(zip(words, values[index].tolist(), strict=True))
            found.append(Filling(text, index, position, candidates))

    return found
