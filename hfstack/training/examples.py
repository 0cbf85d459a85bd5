"""Show rows as training reads them: the text, and which part of it is trained.

`--show 3` prints three and ends; every run that trains logs the first one and keeps it in run.json.
"""

import json
from collections.abc import Iterator
from itertools import groupby, islice
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from hfstack.logs import get_logger
from hfstack.runs.run import Run
from hfstack.tokens.special_tokens import IGNORED_LABEL

logger = get_logger(__name__)

_LOGGED_CHARACTERS = 600


class RecordRows(TrainerCallback):
    """Log which rows are used, and the first as it is trained; keep both in run.json.

    Args:
        run: whose record gets it.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def lines(self) -> list[str]:
        """Return a line for the rows of each split, and one for the columns."""
        return self._run.record.rows.lines()

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Describe the rows that were read, and the first of them."""
        if state.is_world_process_zero:
            for line in self.lines():
                logger.info("%s", line)

        loader, tokenizer = kwargs.get("train_dataloader"), kwargs.get("processing_class")
        if loader is None or tokenizer is None or not state.is_world_process_zero:
            return

        names = getattr(kwargs["model"].config, "id2label", None)
        # PPO's loader reads prompts by their number, and makes no batch of them.
        collate = getattr(loader, "collate_fn", list)
        text = next(describe_rows(loader.dataset, collate, tokenizer, names), None)
        if text is not None:
            self._run.record.example = text
            if len(text) > _LOGGED_CHARACTERS:
                text = f"{text[:_LOGGED_CHARACTERS]} ... (all of it: --show 1)"
            logger.info("the first row as it is trained:\n%s", text)


def first_rows(trainer: Any, tokenizer: PreTrainedTokenizerBase, count: int) -> str:
    """Return what was read, and the first rows as a Trainer will train on them."""
    callbacks = trainer.callback_handler.callbacks
    counted = [line for one in callbacks if isinstance(one, RecordRows) for line in one.lines()]
    names = getattr(trainer.model.config, "id2label", None)
    rows = describe_rows(trainer.train_dataset, trainer.data_collator, tokenizer, names)
    shown = [f"row {number}, {text}" for number, text in enumerate(islice(rows, count), 1)]
    return "\n\n".join(["\n".join(counted), *shown] if counted else shown)


def describe_rows(
    rows: Any,
    collate: Any,
    tokenizer: PreTrainedTokenizerBase,
    names: dict[int, str] | None = None,
) -> Iterator[str]:
    """Yield each row as a line on its tokens and one for each part, read or trained.

    Args:
        rows: the dataset that training reads.
        collate: makes a batch of a list of rows: what it returns is what the model gets.
        names: of classes, by their number.
    """
    for row in rows:
        if lines := _describe_pair(row, tokenizer):
            yield "\n".join(lines)
            continue

        # A collator may mask at random, and training's own numbers stay as they are.
        with torch.random.fork_rng(devices=[]):
            batch = collate([row])

        # Online trainers read prompts alone, and generate the rest.
        if isinstance(batch, list):
            yield f"a prompt\n  asked    {_quoted(batch[0]['prompt'])}"
        elif "input_ids" in batch:
            yield "\n".join(_describe_batch(batch, tokenizer, names or {}))
        elif "chosen_input_ids" in batch:
            lines: list[str] = []
            for side in ("chosen", "rejected"):
                keys = ("input_ids", "labels", "attention_mask")
                one = {key: batch[f"{side}_{key}"] for key in keys}
                lines += _describe_batch(one, tokenizer, {})
            yield "\n".join(lines)


def _describe_pair(row: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the lines of two texts whose order or nearness is trained, or none.

    Such are two answers of which a reward model learns the better one, and a query with its
    passage, and passages that do not answer it or a score.
    """
    if not isinstance(row, dict):
        return []
    # rows of dpo have their prompt beside them, and go on to be shown with what is trained marked
    if "chosen_ids" in row and "prompt_ids" not in row:
        sides = [(side, row[f"{side}_ids"]) for side in ("chosen", "rejected")]
        lines = [
            f"a pair of {len(sides[0][1])} and {len(sides[1][1])} tokens: the order is trained"
        ]
        return lines + [
            f"  {side:<8} {_quoted(_decode_all(tokenizer, ids))}" for side, ids in sides
        ]
    if {"query", "passage"} <= row.keys():
        lines = ["a query and its passage: how near they are is trained"]
        return lines + [f"  {name:<8} {_quoted(text)}" for name, text in row.items()]
    return []


def _describe_batch(
    batch: dict[str, Any], tokenizer: PreTrainedTokenizerBase, names: dict[int, str]
) -> list[str]:
    """Return the lines of each sequence of a batch; a pair has two sequences."""
    ids: torch.Tensor = batch["input_ids"]
    labels: Any = batch.get("labels")
    completion: Any = batch.get("completion_mask")
    mask: Any = batch.get("attention_mask")

    of_tokens = isinstance(labels, torch.Tensor) and labels.shape == ids.shape
    # The labels of an encoder-decoder are another text, which may be as long.
    of_tokens = of_tokens and "decoder_input_ids" not in batch
    of_completion = isinstance(completion, torch.Tensor) and completion.shape == ids.shape
    lines: list[str] = []
    for index, row in enumerate(ids):
        here = torch.ones_like(row, dtype=torch.bool)
        if isinstance(mask, torch.Tensor) and mask.shape == ids.shape:
            here = mask[index].bool()

        trained = torch.zeros_like(here)
        if of_tokens:
            trained = labels[index] != IGNORED_LABEL
        elif of_completion:
            trained = completion[index].bool()

        tokens, marks = row[here].tolist(), trained[here].tolist()
        how_many = f", {sum(marks)} trained" if of_tokens or of_completion else ""
        lines.append(f"{len(tokens)} tokens{how_many}")
        lines += [
            f"  {kind:<8} {_quoted(text)}" for kind, text in _stretches(tokens, marks, tokenizer)
        ]
        if of_tokens:
            lines += _labels_of_tokens(tokens, labels[index][here].tolist(), tokenizer, names)
        if "start_positions" in batch:
            start, end = (int(batch[f"{name}_positions"][index]) for name in ("start", "end"))
            lines.append(
                f"  answer   {_quoted(_decode_all(tokenizer, row[start : end + 1].tolist()))}"
            )

    if isinstance(labels, torch.Tensor) and not of_tokens:
        lines += _labels_of_rows(labels, tokenizer, names)
    return lines


def _stretches(
    tokens: list[int], marks: list[bool], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, str]]:
    """Yield ("read" or "trained", text) for each stretch of tokens of one kind."""
    end, before = 0, ""
    for mark, stretch in groupby(marks):
        end += len(list(stretch))
        # Decoded with what stands before it: alone it would lose the blank it begins with.
        whole = _decode_all(tokenizer, tokens[:end])
        yield "trained" if mark else "read", whole[len(before) :]
        before = whole


def _labels_of_tokens(
    tokens: list[int],
    labels: list[int],
    tokenizer: PreTrainedTokenizerBase,
    names: dict[int, str],
) -> list[str]:
    """Return a line of "token -> label" where the label is not the token itself."""
    pairs = [
        (token, label)
        for token, label in zip(tokens, labels, strict=True)
        if label not in (IGNORED_LABEL, token)
    ]
    if not pairs:
        return []

    # Classes of tokens are few and named; the labels of masked tokens are tokens.
    are_classes = len(names) > 2 and all(label in names for _, label in pairs)
    shown = [
        f"{_decode_all(tokenizer, [token]).strip()} -> "
        f"{names[label] if are_classes else _decode_all(tokenizer, [label]).strip()}"
        for token, label in pairs
    ]
    return [f"  labels   {', '.join(shown)}"]


def _labels_of_rows(
    labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase, names: dict[int, str]
) -> list[str]:
    """Return a line a row: the target's text, the class, or the numbers."""
    lines = []
    for row in labels:
        if row.dim() == 1 and not row.is_floating_point():
            kept = [token for token in row.tolist() if token != IGNORED_LABEL]
            lines.append(f"  trained  {_quoted(_decode_all(tokenizer, kept))}")
        elif row.dim() == 0 and not row.is_floating_point():
            lines.append(f"  label    {names.get(int(row), int(row))}")
        else:
            lines.append(f"  label    {row.tolist()}")
    return lines


def _decode_all(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    text = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
