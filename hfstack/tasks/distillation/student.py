"""Make a student's training forward return its distance from a teacher.

The Trainer stays the stock one: it calls the model, and the model returns a loss. So accumulated
gradients, several processes, resuming and everything else that holds for a Trainer hold here.

Legend: B rows, T tokens, N scored positions of a batch, d hidden size.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.modeling_outputs import CausalLMOutput

from hfstack.errors import ConfigError
from hfstack.models.output_head import (
    OutputHead,
    body_of,
    find_linear_head,
    picker_of_body_inputs,
    product_dtype,
)
from hfstack.tasks.distillation.chunked_loss import ChunkedDistillation, ReadTeacher
from hfstack.tasks.distillation.divergence import Objective
from hfstack.tokens.special_tokens import IGNORED_LABEL
from hfstack.training.next_token import LOSS_OF_ITS_OWN
from hfstack.training.token_average import is_repeated_batch

TEACHER_PLACES = "teacher_places"
"""The column with the place of each token among the teacher's cached answers."""

Teacher = Callable[[dict[str, Any], Tensor], ReadTeacher]
"""Reads a batch (the model's inputs and TEACHER_PLACES) and a mask, (B, T - 1), of the scored
positions."""


class PartsOfLoss(TrainerCallback):
    """Log of each loss its divergence and its cross-entropy, in nats a scored token."""

    def __init__(self) -> None:
        self._sums: dict[bool, Tensor] = {}

    def add(self, divergence: Tensor, hard: Tensor, count: Tensor, *, training: bool) -> None:
        """Add the sums of a batch; what another process has too counts there."""
        if not training and is_repeated_batch():
            return
        found = torch.stack([divergence.detach(), hard.detach(), count.float()])
        before = self._sums.get(training)
        self._sums[training] = found if before is None else before + found

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the means since the last log of the same kind."""
        logs = kwargs["logs"]
        training = "loss" in logs
        if not training and "eval_loss" not in logs:
            return
        sums = self._sums.pop(training, None)
        if sums is None:
            return

        total: Any = reduce(sums, "sum")
        divergence, hard, count = total.tolist()
        prefix = "" if training else "eval_"
        found = {f"{prefix}divergence": divergence, f"{prefix}hard_loss": hard}
        for name, value in found.items():
            logs[name] = state.log_history[-1][name] = value / count


def head_of(model: PreTrainedModel, role: str) -> OutputHead:
    """Return how a model makes logits of hidden states.

    Args:
        role: `student` or `teacher`, for the message.

    Raises:
        ConfigError: its logits are no matrix product of its hidden states.
    """
    head = find_linear_head(model)
    if head is None:
        raise ConfigError(
            f"the {role} is a {type(model).__name__}, whose logits are no matrix product of its "
            "hidden states, so that they cannot be compared in parts: let the teacher answer the "
            "prompts and train the student on the answers (docs/recipes/distill.md)"
        )
    return head


def use_distilled_loss(
    model: PreTrainedModel, teacher: Teacher, objective: Objective, parts: PartsOfLoss
) -> None:
    """Make the model's forward with labels return its loss against the teacher alone.

    Generation and every call without labels are untouched.

    Raises:
        ConfigError: the student's logits are no matrix product of its hidden states.
    """
    head = head_of(model, "student")
    stock_forward, pick_inputs = model.forward, picker_of_body_inputs(model)
    last: Any = model.get_submodule(head.modules[-1])

    # the Trainer reads the signature, to know that the loss takes the number of scored tokens
    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel,
        input_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        teacher_places: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        if labels is None:
            return stock_forward(input_ids=input_ids, **inputs)

        batch: dict[str, Any] = {"input_ids": input_ids} | inputs
        states = body_of(self)(**pick_inputs(batch))[0][:, :-1]  # (B, T - 1, d)
        scored = labels[:, 1:] != IGNORED_LABEL  # (B, T - 1)
        hidden = head.transform(self, states[scored])  # (N, d)
        read_teacher = teacher(batch | {TEACHER_PLACES: teacher_places}, scored)

        dtype = product_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            found: Any = ChunkedDistillation.apply(
                hidden.to(dtype),
                last.weight,
                last.bias,
                labels[:, 1:][scored],
                read_teacher,
                head.finish,
                objective,
                torch.is_grad_enabled(),
            )
        total, divergence, hard = found
        here = scored.sum()
        parts.add(divergence, hard, here, training=self.training)

        # over accumulated micro-batches the Trainer counts the scored positions of all of them
        count = here.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutput(loss=total / count)

    setattr(forward, LOSS_OF_ITS_OWN, True)
    model.forward = types.MethodType(forward, model)
