"""Cache a teacher's likeliest tokens on disk, so that it is run once

A folder holds two .npy files, which are mapped into memory: the ids of the k likeliest tokens of
each scored position, and their log-probabilities with that of all other tokens together. Its name
is a hash of the teacher's files, the rows' tokens and labels, k and the temperature, so that
nothing stale is read; `meta.json` is written last, and a folder without it is made again.

Legend: P scored positions of a split, k kept tokens, V vocabulary.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.lib.format import open_memmap
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from hfstack.disk import (
    atomic_folder,
    atomic_write,
    describe_os_error,
    hash_file,
    hash_text,
    read_json_file,
)
from hfstack.errors import CheckpointError, ConfigError
from hfstack.logs import get_logger
from hfstack.models.contents import identify_model
from hfstack.models.output_head import body_of, picker_of_body_inputs
from hfstack.progress import follow
from hfstack.tasks.distillation.chunked_loss import positions_at_once
from hfstack.tasks.distillation.divergence import TopK, keep_top
from hfstack.tasks.distillation.student import head_of
from hfstack.tokens.special_tokens import IGNORED_LABEL, padding_token_id

logger = get_logger(__name__)

_CACHE_FORMAT = 1  # part of the key: raise it when the files' content changes
_IDS, _LOG_PROBS, _META = "ids.npy", "log_probs.npy", "meta.json"
_ROWS_AT_ONCE = 8


@dataclass(frozen=True)
class CachedTop:
    """The teacher's top tokens at every scored position of one split."""

    ids: np.ndarray  # (P, k) int32, on disk
    log_probs: np.ndarray  # (P, k + 1) float16, the tail last, on disk
    mean_tail: float  # mass outside the kept tokens, mean over positions
    loss: float  # of the teacher itself on the rows' tokens, nats a scored token

    def read(self, places: Tensor, device: torch.device) -> TopK:
        """Return what is kept of some positions, on the device.

        Rounding to 16 bits leaves a total that is not quite 1, so it is made 1 again.
        """
        index = places.numpy()
        ids = torch.from_numpy(self.ids[index].astype(np.int64))
        log_probs = torch.from_numpy(self.log_probs[index].astype(np.float32))
        return TopK(ids.to(device), log_probs.log_softmax(dim=-1).to(device))


def number_scored(rows: Dataset, column: str, *, first: int = 0) -> Dataset:
    """Add to encoded rows the place of each token among the scored positions.

    The position before a scored token is the one whose next token is predicted.

    Args:
        rows: with `labels`.
        column: the name of the new column.
        first: the place of the first scored position.
    """
    scored = [sum(label != IGNORED_LABEL for label in labels[1:]) for labels in rows["labels"]]
    starts = list(accumulate(scored, initial=first))

    def number(row: dict[str, Any], index: int) -> dict[str, Any]:
        following = starts[index]
        places = [0] * len(row["labels"])
        for position, label in enumerate(row["labels"][1:]):
            if label != IGNORED_LABEL:
                places[position] = following
                following += 1
        return {column: places}

    # all columns are written again, since TRL packs columns of equal chunks alone
    return rows.map(number, with_indices=True, load_from_cache_file=False, desc="Numbering rows")


def cache_key(teacher: str, rows: Dataset, *, k: int, temperature: float) -> str:
    """Return the name of the folder of one teacher, one split and one setting.

    Args:
        teacher: from `describe_teacher`.
        rows: encoded, with `input_ids` and `labels`.
        k: kept tokens.
        temperature: of the softened distribution.
    """
    content = json.dumps([rows["input_ids"][:], rows["labels"][:]])
    return hash_text(json.dumps([_CACHE_FORMAT, teacher, hash_text(content), k, temperature]))


def describe_teacher(name: str) -> str:
    """Return a text that changes with a teacher's weights.

    Of a folder the hashes of its weights and settings, of an adapter those of its base too; of a
    model of the Hub its commit.
    """
    folder = Path(name)
    if not folder.is_dir():
        config = cached_file(name, "config.json")
        return f"{name} {Path(config).parent.name}" if config else name

    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")])
    listed = [f"{file.name} {hash_file(file)}" for file in files]
    found = identify_model(name)
    if found.adapter:
        listed.append(describe_teacher(found.base))
    return "\n".join(listed)


def open_cache(folder: Path) -> CachedTop | None:
    """Return what was cached, or None where it is not there or not whole.

    Raises:
        CheckpointError: it is there and cannot be read.
    """
    if not (folder / _META).is_file():
        return None
    try:
        meta = read_json_file(folder / _META)
        ids, log_probs = (
            np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (_IDS, _LOG_PROBS)
        )
        assert len(ids) == len(log_probs) == meta["positions"]
    except (OSError, EOFError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise CheckpointError(
            f"{folder}, the teacher's cached answers, is damaged ({error or 'a file is cut off'}): "
            "delete that folder and run again"
        ) from error
    return CachedTop(ids, log_probs, meta["mean_tail"], meta["loss"])


def write_cache(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    *,
    k: int,
    temperature: float,
    vocabulary: int,
) -> CachedTop:
    """Run the teacher over rows and keep its top tokens.

    Args:
        folder: where they go; its parent is made.
        model: the teacher, on its device, in evaluation mode.
        tokenizer: of both models.
        rows: encoded, not packed.
        k: kept tokens.
        temperature: that the logits are divided by.
        vocabulary: ids that the student has too; those behind are padding of the teacher's head.

    Raises:
        ConfigError: more tokens are kept than there are, or the folder cannot be written.
    """
    if not 0 < k < vocabulary:
        raise ConfigError(
            f"--teacher_top_k must be between 1 and the vocabulary of {vocabulary} less one, got "
            f"{k}; without --teacher_cache the whole distribution is compared"
        )
    positions = sum(sum(label != IGNORED_LABEL for label in row[1:]) for row in rows["labels"])

    try:
        with atomic_folder(folder) as partial:
            ids = open_memmap(partial / _IDS, mode="w+", dtype=np.int32, shape=(positions, k))
            log_probs = open_memmap(
                partial / _LOG_PROBS, mode="w+", dtype=np.float16, shape=(positions, k + 1)
            )
            tails, loss = _fill(
                *(ids, log_probs, model, tokenizer, rows),
                temperature=temperature,
                vocabulary=vocabulary,
            )
            for array in (ids, log_probs):
                array.flush()

            mean_tail, mean_loss = tails / positions, loss / positions
            meta = {"positions": positions, "mean_tail": mean_tail, "loss": mean_loss}
            with atomic_write(partial / _META) as file:
                json.dump(meta, file)
    except OSError as error:
        raise ConfigError(f"--teacher_cache {folder.parent}: {describe_os_error(error)}") from error

    size = sum(file.stat().st_size for file in folder.iterdir())
    logger.info("cached the teacher's top %d tokens: %s, %.1f MB", k, folder, size / 1e6)
    found = open_cache(folder)
    assert found is not None
    return found


def _fill(
    ids: np.ndarray,
    log_probs: np.ndarray,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    *,
    temperature: float,
    vocabulary: int,
) -> tuple[float, float]:
    """Write the top tokens of all rows; return the sums of tail mass and loss."""
    head, device = head_of(model, "teacher"), model.device
    pick_inputs = picker_of_body_inputs(model)
    pad, step = padding_token_id(tokenizer), positions_at_once(vocabulary, model.device)
    tails = loss = 0.0
    done = 0

    starts = range(0, len(rows), _ROWS_AT_ONCE)
    for start in follow(starts, "the teacher reads", total=len(starts)):
        batch: list[Any] = rows.select(
            range(start, min(start + _ROWS_AT_ONCE, len(rows)))
        ).to_list()
        token_ids = _pad([row["input_ids"] for row in batch], pad).to(device)  # (B, T)
        labels = _pad([row["labels"] for row in batch], IGNORED_LABEL).to(device)  # (B, T)
        mask = _pad([[1] * len(row["input_ids"]) for row in batch], 0).to(device)  # (B, T)
        targets = labels[:, 1:]
        scored = targets != IGNORED_LABEL  # (B, T - 1)

        with torch.no_grad():
            inputs = pick_inputs({"input_ids": token_ids, "attention_mask": mask})
            hidden = body_of(model)(**inputs)[0][:, :-1][scored]  # (n, d)
            for wanted, part in zip(targets[scored].split(step), hidden.split(step), strict=True):
                logits = head.logits(model, part)[:, :vocabulary].float()
                top = keep_top(logits, ids.shape[1], temperature=temperature)
                stop = done + len(part)
                ids[done:stop] = top.ids.cpu().numpy()
                log_probs[done:stop] = top.log_probs.cpu().numpy()
                done = stop

                tails += top.log_probs[:, -1].exp().double().sum().item()
                own = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
                loss += own.item()

    assert done == len(ids) and math.isfinite(loss)
    return tails, loss


def _pad(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Return rows as one tensor (B, T), filled up on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
