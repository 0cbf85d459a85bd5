"""Check a Trainer that was just built, before its first step.

The rules are those of hfstack.training.checks; here they meet the rows, the model and the loss that
training will use.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any, TypeVar

import torch
from transformers import PreTrainedTokenizerBase, Trainer

from hfstack.logs import get_logger
from hfstack.training.checks import (
    IGNORED_LABEL,
    accumulation_keeps_loss,
    embedding_covers_tokenizer,
    labels_in_range,
    no_double_bos,
    preflight,
    some_label_is_scored,
)

logger = get_logger(__name__)

TrainerT = TypeVar("TrainerT", bound=Trainer)

CHECKED_ROWS = (
    1000  # the first ones; what is wrong with a template or an encoding is wrong in all rows
)
COMPARED_ROWS = 100_000
ACCUMULATED_ROWS = 4


def checked(
    trainer: TrainerT, tokenizer: PreTrainedTokenizerBase, *, classes: int | None = None
) -> TrainerT:
    """Check for what trains silently wrong, log what was checked, return the Trainer.

    Held-out rows that are train rows too are counted in a warning, since the official splits of
    public data have some.

    Args:
        trainer: with a `train_dataset` whose rows have `input_ids`, and `labels` where tokens are
            labelled.
        classes: labels of tokens are 0 .. classes - 1.

    Raises:
        DataError: naming every problem.
    """
    model: Any = trainer.model
    train: Any = trainer.train_dataset
    rows = [train[index] for index in range(min(CHECKED_ROWS, len(train)))]
    ids = [_numbers(row["input_ids"]) for row in rows]
    first: Any = (
        tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    )

    embedded = model.get_input_embeddings().weight.shape[0]
    results = {
        "no doubled first token": no_double_bos(ids, first),
        "every id has an embedding": embedding_covers_tokenizer(embedded, tokenizer),
    }

    if classes is not None:
        labels = [_numbers(row["labels"]) for row in rows]
        scored = (label for row in labels for label in row if label != IGNORED_LABEL)
        results["some label is scored"] = some_label_is_scored([list(chain.from_iterable(labels))])
        results["labels are classes"] = labels_in_range(scored, classes)

    if trainer.args.gradient_accumulation_steps > 1 and not (
        trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    ):
        results["accumulation keeps the loss"] = accumulation_keeps_loss(
            *_losses(trainer, rows[:ACCUMULATED_ROWS])
        )

    preflight(results)
    if trainer.eval_dataset is not None:
        _count_shared(train, trainer.eval_dataset)
    return trainer


def _losses(trainer: Trainer, rows: Sequence[Any]) -> tuple[float, float]:
    """Return the loss of rows read at once, and the sum over single rows.

    As training adds it up.
    """
    model: Any = trainer.model
    was_training = model.training
    model.eval()  # without dropout
    with torch.no_grad(), trainer.compute_loss_context_manager():
        whole = _scaled_loss(trainer, [list(rows)])
        parts = _scaled_loss(trainer, [[row] for row in rows])
    model.train(was_training)
    return whole, parts


def _scaled_loss(trainer: Trainer, parts: Sequence[Sequence[Any]]) -> float:
    model: Any = trainer.model
    batches = [trainer.data_collator(list(part)) for part in parts]
    items = trainer._get_num_items_in_batch(batches, trainer.args.device)
    given = trainer.model_accepts_loss_kwargs and items is not None
    scaled = given or trainer.compute_loss_func is not None

    total = 0.0
    for batch in batches:
        loss: Any = trainer.compute_loss(
            model, trainer._prepare_inputs(batch), num_items_in_batch=items
        )
        total += loss.item() / (1 if scaled else len(batches))

    return total


def _count_shared(train: Any, held_out: Any) -> None:
    """Warn of held-out rows that are among the (first) train rows."""
    kept = {hash(tuple(_numbers(row["input_ids"]))) for row in _first_rows(held_out)}
    shared = len(kept & {hash(tuple(_numbers(row["input_ids"]))) for row in _first_rows(train)})
    if shared:
        logger.warning(
            "%d of %d different held-out rows are trained on too, and say nothing about unseen "
            "rows",
            shared,
            len(kept),
        )


def _first_rows(rows: Any) -> Iterable[Any]:
    return islice((rows[index] for index in range(len(rows))), COMPARED_ROWS)


def _numbers(values: Any) -> list[int]:
    return values.tolist() if isinstance(values, torch.Tensor) else list(values)
