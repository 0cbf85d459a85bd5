"""Read a teacher: the model itself at each step, or its cached top tokens.

Legend: B rows, T tokens, N scored positions of a batch, V vocabulary, k kept tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfstack.errors import ConfigError
from hfstack.models.output_head import body_of, picker_of_body_inputs
from hfstack.tasks.distillation.cache import CachedTop
from hfstack.tasks.distillation.chunked_loss import ReadTeacher
from hfstack.tasks.distillation.divergence import TopK
from hfstack.tasks.distillation.student import TEACHER_PLACES, head_of


class LiveTeacher:
    """Runs the teacher on each batch, its logits a chunk of positions at a time."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Hold a model in evaluation mode, without gradients.

        Raises:
            ConfigError: its logits are no matrix product of its hidden states.
        """
        self.model = model.eval().requires_grad_(False)
        self.head = head_of(model, "teacher")
        self._pick_inputs = picker_of_body_inputs(self.model)

    def __call__(self, batch: dict[str, Any], scored: Tensor) -> ReadTeacher:
        """Return the reader of the logits of a batch, (n, V) from one position to another."""
        inputs = {name: value for name, value in batch.items() if name != TEACHER_PLACES}
        with torch.no_grad():
            states = body_of(self.model)(**self._pick_inputs(inputs))[0][:, :-1]
            hidden = states[scored]  # (N, d)

        def read(start: int, stop: int) -> Tensor:
            with torch.no_grad():
                return self.head.logits(self.model, hidden[start:stop])

        return read


class CachedTeacher:
    """Reads what the teacher said once, from files that are mapped into memory.

    Args:
        splits: one behind the other, as their positions are numbered.
    """

    def __init__(self, splits: Sequence[CachedTop]) -> None:
        self.splits = splits

    def __call__(self, batch: dict[str, Any], scored: Tensor) -> ReadTeacher:
        """Return the reader of the top tokens of a batch."""
        places = batch[TEACHER_PLACES][:, :-1][scored].cpu()  # (N,)

        # a batch is of one split: training and evaluation have loaders of their own
        first, cached = 0, self.splits[0]
        for split in self.splits:
            cached = split
            if not len(places) or int(places[0]) < first + len(split.ids):
                break
            first += len(split.ids)

        def read(start: int, stop: int) -> TopK:
            return cached.read(places[start:stop] - first, scored.device)

        return read


@dataclass(frozen=True)
class TokenizerGap:
    """How two tokenizers differ; falsy where they do not."""

    line: str = ""

    def __bool__(self) -> bool:
        return bool(self.line)


def compare_tokenizers(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> TokenizerGap:
    """Return how a teacher's tokens, compared by id, differ from a student's."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    other = sorted(
        token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)
    )
    if other:
        first = other[0]
        return TokenizerGap(
            f"{len(other)} of {len(ours.keys() | theirs.keys())} tokens differ, such as {first!r}: "
            f"id {ours.get(first)} and {theirs.get(first)}"
        )

    # one vocabulary may be reached by other merges, or after another normalisation
    for part in ("normalizer", "pre_tokenizer", "model"):
        if _part_of(student, part) != _part_of(teacher, part):
            return TokenizerGap(f"the same tokens, but another {part} splits text into them")
    return TokenizerGap()


def refuse_other_tokenizer(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, name: str
) -> None:
    """Refuse a teacher whose tokens are not the student's.

    Raises:
        ConfigError: with the way out.
    """
    gap = compare_tokenizers(student, teacher)
    if gap:
        raise ConfigError(
            f"--teacher_model {name} has another tokenizer than the student ({gap.line}), and "
            "their distributions cannot be compared: let the teacher answer the prompts with "
            "hfstack run generate, and train the student on the answers with hfstack run sft "
            "(docs/recipes/distill.md)"
        )


def _part_of(tokenizer: PreTrainedTokenizerBase, part: str) -> Any:
    """Return a part of a fast tokenizer as JSON; of a slow one its class."""
    if not tokenizer.is_fast:
        return type(tokenizer).__name__
    core: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]  # fast ones have it
    return json.loads(core.to_str())[part]
