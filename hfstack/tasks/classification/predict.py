"""Predict rows with a classifier: logits in batches, and the rows of `predict`.

Legend: N rows, B rows of a batch, T tokens of the longest, C outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from hfstack.logs import get_logger
from hfstack.models.context import context_length
from hfstack.models.heads import padding_id
from hfstack.tasks.classification.calibration import probabilities
from hfstack.tasks.classification.metrics import NUMBER, SEVERAL
from hfstack.tasks.classification.model import ClassifierInfo, load_trained_classifier
from hfstack.tasks.shared.predict import (
    Predictor,
    answer_usable,
    by_length,
    problem_of_texts,
)
from hfstack.tokens.text_rows import choose_max_length, encode_texts, pad_rows

logger = get_logger(__name__)


@torch.no_grad()
def classify_logits(
    model: torch.nn.Module,
    rows: Sequence[Mapping[str, Any]],
    *,
    pad_token_id: int,
    batch_size: int = 32,
) -> numpy.ndarray[Any, Any]:
    """Return the logits (N, C) of encoded rows, in order, batched by length."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device

    def score(batch: list[Mapping[str, Any]]) -> list[Any]:
        plain = [{name: value for name, value in row.items() if name != "labels"} for row in batch]
        inputs = {
            name: tensor.to(device)
            for name, tensor in pad_rows(plain, pad_token_id=pad_token_id).items()
        }
        return list(model(**inputs).logits.float().cpu().numpy())  # B arrays of (C,)

    found = by_length(rows, [len(row["input_ids"]) for row in rows], score, batch_size)
    model.train(training)
    return numpy.stack(found)


def answers_of_row(logits: numpy.ndarray[Any, Any], info: ClassifierInfo) -> list[dict[str, Any]]:
    """Return what `predict` writes of each row, with the model's temperature applied.

    One class: `label`, its `probability`, and `probabilities` by label. Several: `labels` (those
    above one half) and `probabilities`. A number: `value`."""
    if info.problem_type == NUMBER:
        return [{"value": float(value)} for value in logits[:, 0]]

    chance = probabilities(logits, info.problem_type, info.temperature)
    rows: list[dict[str, Any]] = []
    for each in chance:
        # chosen before rounding: 0.5000001 is above one half
        shown = {name: round(float(value), 6) for name, value in zip(info.names, each, strict=True)}
        if info.problem_type == SEVERAL:
            labels = [name for name, value in zip(info.names, each, strict=True) if value > 0.5]
            rows.append({"labels": labels, "probabilities": shown})
        else:
            best = int(each.argmax())
            probability = round(float(each[best]), 6)
            row = {"label": info.names[best], "probability": probability, "probabilities": shown}
            rows.append(row)

    return rows


def load_classify_predictor(
    args: ModelConfig,
    *,
    columns: tuple[str | None, str | None],
    batch_size: int,
    max_length: int | None,
) -> Predictor:
    """Load a finished classifier, and return what predicts rows.

    Labels and probabilities, or numbers.

    Args:
        columns: of the texts; None for those that the model was trained on.
        max_length: tokens after which a text is truncated; None for what it was trained with.

    Raises:
        CheckpointError: there is no whole classifier.
        ConfigError: `max_length` is more than the model reads.
    """
    model, tokenizer, info = load_trained_classifier(args)
    model.to(Accelerator().device)  # pyright: ignore[reportArgumentType]
    limit = choose_max_length(max_length, context_length(model.config), tokenizer.model_max_length)

    if max_length is None and info.max_length is not None:
        limit = info.max_length
    names = (columns[0] or info.text_column, columns[1] or info.text_pair_column)
    pad = padding_id(tokenizer)

    def predict(rows: Sequence[dict[str, Any]], first_row: int = 1) -> list[dict[str, Any]]:
        encoded = _encode_rows(rows, names, tokenizer, limit, first_row)
        return answers_of_row(
            classify_logits(model, encoded, pad_token_id=pad, batch_size=batch_size), info
        )

    found = [name for name in names if name is not None]
    flags = "--text_column or --text_pair_column"
    return answer_usable(predict, problem_of_texts(found, flags))


def _encode_rows(
    rows: Sequence[dict[str, Any]],
    columns: tuple[str, str | None],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    first_row: int,
) -> list[dict[str, list[int]]]:
    """Encode rows, and log how many are truncated."""
    texts = [row[columns[0]] for row in rows]
    pairs = None if columns[1] is None else [row[columns[1]] for row in rows]
    encoded = encode_texts(tokenizer, texts, pairs, max_length=None)
    if max_length is None or max(len(row["input_ids"]) for row in encoded) <= max_length:
        return encoded

    # The tokenizer truncates, since it knows which of a pair to shorten and keeps special tokens.
    long = sum(len(row["input_ids"]) > max_length for row in encoded)
    logger.warning(
        "%d of rows %d to %d are truncated at %d tokens",
        long,
        first_row,
        first_row + len(rows) - 1,
        max_length,
    )

    return encode_texts(tokenizer, texts, pairs, max_length=max_length)
