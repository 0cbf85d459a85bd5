"""Check a Trainer that was just built, before its first step.

The rules are those of hfstack.training.checks; here they meet the rows, the model and the loss that
training will use.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from datasets import IterableDataset
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    PreTrainedTokenizerBase,
    Trainer,
)

from hfstack.config import examples_to_show
from hfstack.errors import ConfigError, ExamplesShown
from hfstack.logs import get_logger
from hfstack.models.dropout import turn_off_dropout
from hfstack.models.output_head import without_adapter
from hfstack.models.probes import padding_changes
from hfstack.runs.environment import is_sharded
from hfstack.tokens.special_tokens import IGNORED_LABEL
from hfstack.training.checks import (
    accumulation_keeps_loss,
    embedding_covers_tokenizer,
    labels_in_range,
    no_double_bos,
    preflight,
    some_label_is_scored,
)
from hfstack.training.examples import first_rows
from hfstack.training.experts import settle_router_loss
from hfstack.training.next_token import settle_next_token_loss
from hfstack.training.progress import show_progress
from hfstack.training.saving import SaveFirst
from hfstack.training.unread_options import refuse_unread_of
from hfstack.training.weights_16_bits import settle_half_weights

logger = get_logger(__name__)

TrainerT = TypeVar("TrainerT", bound=Trainer)

# The first ones: what is wrong with a template or an encoding is wrong in all rows.
CHECKED_ROWS = 1000
COMPARED_ROWS = 100_000
ACCUMULATED_ROWS = 4

_TEXT_HEADS: tuple[Any, ...] = (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
)

NO_SHARED_ROW = "no row in train and eval"

# a rule, in a reader's words, and its problem or None
Problems = dict[str, str | None]


def checked(
    trainer: TrainerT,
    tokenizer: PreTrainedTokenizerBase,
    found: Problems | None = None,
    *,
    reads_ahead: bool = False,
) -> TrainerT:
    """Refuse to train on any problem, log what was checked, and return the Trainer.

    Every recipe that trains goes through here, right before its first step. What holds for all of
    them is checked here; what depends on the task is checked by its own functions and handed in.
    The Trainer that is returned saves what it has trained before anything scores it.

    Args:
        trainer: as the recipe built it.
        tokenizer: of the model that is trained.
        found: what the functions that check rows, prompts or losses have found.
        reads_ahead: what follows a position is there to be read, as for masked tokens. One class of
            XLM is both a causal and a masked language model.

    Raises:
        ConfigError: an option is set that this recipe does not read, weights of 16 bits are
            trained, a causal model reads what follows a position, or the model trains on rows of
            one length alone and these are others.
        DataError: naming every problem.
        ExamplesShown: `--show` asked to see rows; they are its text.
    """
    refuse_unread_of(trainer)
    settle_router_loss(trainer)
    if not reads_ahead:
        settle_next_token_loss(trainer)
    _turn_off_all_dropout(trainer)
    _freeze_what_is_not_saved(trainer.model)
    settle_half_weights(trainer)

    train: Any = trainer.train_dataset
    results: Problems = dict(found or {})

    embedded = _embedding_rows(trainer.model)
    if embedded is not None:
        results["every id has an embedding"] = embedding_covers_tokenizer(embedded, tokenizer)

    rows = _first_encoded_rows(train)
    _refuse_other_lengths(trainer.model, [len(row["input_ids"]) for row in rows])
    if rows:
        first: Any = tokenizer.bos_token_id
        first = tokenizer.cls_token_id if first is None else first
        ids = [_as_list(row["input_ids"]) for row in rows]
        results["no doubled first token"] = no_double_bos(ids, first)

    preflight(results)
    trainer.add_callback(SaveFirst(trainer))
    show_progress(trainer)
    if rows and NO_SHARED_ROW not in results:
        _warn_of_shared_rows(train, trainer.eval_dataset)
    if len({len(row["input_ids"]) for row in rows}) > 1:
        _warn_of_padding(trainer)

    if shown := examples_to_show():
        raise ExamplesShown(first_rows(trainer, tokenizer, shown))
    return trainer


def _turn_off_all_dropout(trainer: Trainer) -> None:
    """Do what --disable_dropout asks for, whatever a family calls its dropout.

    TRL sets the dropout modules alone. With what is left DPO's first loss is not ln 2.
    """
    if getattr(trainer.args, "disable_dropout", False):
        for model in (trainer.model, getattr(trainer, "ref_model", None)):
            if model is not None:
                turn_off_dropout(model)


def label_problems(rows: Any, classes: int) -> Problems:
    """Check the labels of tokens, which are 0 .. classes - 1 or ignored.

    Args:
        rows: a dataset whose rows have `labels`, (T,) each.
    """
    labels = [_as_list(row["labels"]) for row in _first_encoded_rows(rows)]
    scored = (label for row in labels for label in row if label != IGNORED_LABEL)
    return {
        "some label is scored": some_label_is_scored([list(chain.from_iterable(labels))]),
        "labels are classes": labels_in_range(scored, classes),
    }


def training_problems(trainer: Trainer, classes: int) -> Problems:
    """Check the train labels, and how gradients are accumulated."""
    return label_problems(trainer.train_dataset, classes) | accumulation_problems(trainer)


def accumulation_problems(trainer: Trainer) -> Problems:
    """Check that the loss of a batch is the same when its gradients are accumulated.

    Measured on the model and the loss that training will use; not in shards, where one process
    cannot run the model.
    """
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if trainer.args.gradient_accumulation_steps == 1 or sharded:
        return {}

    rows = _first_encoded_rows(trainer.train_dataset)[:ACCUMULATED_ROWS]
    return {"accumulation keeps the loss": accumulation_keeps_loss(*_losses(trainer, rows))}


def _freeze_what_is_not_saved(model: Any) -> None:
    """Freeze weights that a family leaves out when it saves a model.

    Marian's positions are fixed waves, but loaded as weights like others: trained, they would be
    waves again in whatever loads the model.
    """
    inner = without_adapter(model)
    names: dict[Any, list[str]] = {}
    for name, weight in inner.named_parameters(remove_duplicate=False):
        names.setdefault(weight, []).append(name)

    left_out = set(getattr(inner, "_keys_to_ignore_on_save", None) or ())
    for weight, known_as in names.items():
        if weight.requires_grad and left_out.issuperset(known_as):
            logger.info("%s is not trained: this family does not save it", known_as[0])
            weight.requires_grad_(False)


def _refuse_other_lengths(model: Any, lengths: Sequence[int]) -> None:
    """Refuse rows that fill no grid of positions.

    Reformer trains on rows of one length alone.

    Args:
        model: with or without an adapter.
        lengths: of the first rows; none where the rows are pairs or prompts, which differ.
    """
    inner = without_adapter(getattr(model, "policy", model))
    config: Any = getattr(inner, "config", None)
    if not getattr(config, "axial_pos_embds", False):
        return

    needed = math.prod(config.axial_pos_shape)
    if not lengths or set(lengths) != {needed}:
        shown = f"the first one has {lengths[0]}" if lengths else "these are of different lengths"
        raise ConfigError(
            f"{type(inner).__name__} trains on rows of {needed} tokens alone (axial_pos_shape "
            f"{config.axial_pos_shape} of its config.json), and {shown}: pretrain with "
            f"--block_size {needed}, or name another model"
        )


def _warn_of_shared_rows(train: Any, held_out: Any) -> None:
    """Warn of held-out rows among the first train rows: public splits have some."""
    if held_out is None:
        return

    kept, trained = ({hash(ids) for ids in _rows_to_compare(rows)} for rows in (held_out, train))
    if shared := len(kept & trained):
        logger.warning(
            "%d of %d different held-out rows are trained on too, and say nothing about unseen "
            "rows",
            shared,
            len(kept),
        )


def _warn_of_padding(trainer: Trainer) -> None:
    """Warn of an encoder in which padding changes what a row's other tokens give.

    FNet mixes all places, ConvBERT's and Funnel's neighbours reach over the mask.
    """
    model = without_adapter(trainer.model)
    config: Any = getattr(model, "config", None)
    has_head = any(
        type(config) in heads and type(model) is heads[type(config)] for heads in _TEXT_HEADS
    )
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder
    if not (has_head and is_encoder) or is_sharded(trainer.args):
        return

    figure = padding_changes(model)
    if not figure.holds:
        logger.warning(
            "padding changes what %s reads (its logits by %.2g of the largest): the result of a "
            "row depends on the longest one of its batch; use another model, or batches of one row",
            type(model).__name__,
            figure.value,
        )


def _embedding_rows(model: Any) -> int | None:
    """Return the rows of the model's embedding; None when it was sharded away already."""
    # PPO trains a policy and a critic in one module; sentence-transformers a transformer in one
    base = getattr(model, "policy", getattr(model, "transformers_model", model))
    embedding = base.get_input_embeddings()
    rows = embedding.weight.shape[0] if embedding is not None else 0
    return rows or None


def _first_encoded_rows(rows: Any) -> list[Any]:
    """Return the first rows, when they have token ids and can be read by their number."""
    if isinstance(rows, IterableDataset) or not len(rows) or "input_ids" not in rows[0]:
        return []
    return [rows[index] for index in range(min(CHECKED_ROWS, len(rows)))]


def _losses(trainer: Trainer, rows: Sequence[Any]) -> tuple[float, float]:
    """Return the loss of rows at once, and of single rows as training sums them."""
    model: Any = trainer.model
    was_training = model.training
    model.eval()  # without dropout
    with torch.no_grad(), trainer.compute_loss_context_manager():
        whole = _scaled_loss(trainer, [list(rows)])
        parts = _scaled_loss(trainer, [[row] for row in rows])
    model.train(was_training)
    return whole, parts


def _scaled_loss(trainer: Trainer, parts: Sequence[Sequence[Any]]) -> float:
    """Return the loss of these micro-batches, as the Trainer scales and sums it."""
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


def _rows_to_compare(rows: Any) -> Iterator[tuple[int, ...]]:
    """Yield the token ids of the first rows."""
    for index in range(min(COMPARED_ROWS, len(rows))):
        yield tuple(_as_list(rows[index]["input_ids"]))


def _as_list(values: Any) -> list[int]:
    return values.tolist() if isinstance(values, torch.Tensor) else list(values)
