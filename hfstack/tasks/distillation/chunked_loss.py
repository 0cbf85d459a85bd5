"""Compute a student's loss from hidden states, a chunk of positions at a time.

All logits of a batch would be (N, V) of the student, as many of the teacher, and as many again for
each step of the divergence and its gradient. Here both heads run over a few hundred positions,
whose gradient is taken on the spot, as hfstack/models/fused_loss.py does for cross-entropy alone.
Autograd works inside a chunk: every divergence has one formula and no derivation by hand.

TRL's own kernel (trl/kernels/chunked_divergence.py, which tests compare with) works on tiles of
4,096 positions and 32,768 tokens: whole batches of a small model. It has neither the rows' own
tokens nor a teacher's cached top tokens beside it.

Legend: N scored positions, n of them in a chunk, d hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hfstack.tasks.distillation.divergence import Objective, TopK, find_divergence, gather_top

ReadTeacher = Callable[[int, int], Tensor | TopK]
"""Returns what the teacher says of the scored positions from one to another: logits (n, V), or its
cached top tokens.
"""

_POSITIONS = 512
_CHUNK_LOGITS = {"cpu": 2**22}  # 16 MiB in fp32
_CHUNK_LOGITS_ACCELERATOR = 2**26


def positions_at_once(vocabulary: int, device: torch.device) -> int:
    """Return how many positions a chunk has."""
    allowed = _CHUNK_LOGITS.get(device.type, _CHUNK_LOGITS_ACCELERATOR)
    return max(1, min(_POSITIONS, allowed // vocabulary))


class ChunkedDistillation(torch.autograd.Function):
    """Sum the loss over positions; the gradients are taken in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        read_teacher: ReadTeacher,
        finish: Callable[[Tensor], Tensor],
        objective: Objective,
        with_gradients: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the summed loss, and of it the divergence and the cross-entropy, fp32.

        Args:
            hidden: (N, d), in the dtype that the matrix products run in.
            weight: (V, d), the student's output embedding.
            bias: (V,) or None.
            targets: (N,), the rows' own tokens.
            read_teacher: the teacher at the same positions.
            finish: the scale and the soft cap behind the student's head.
            objective: the divergence, the temperature and the weights.
            with_gradients: take the gradients as well; off under no_grad.
        """
        needed = [with_gradients and need for need in ctx.needs_input_grad[:3]]
        sources = [hidden, weight.to(hidden.dtype), bias]
        grads = [
            torch.zeros_like(source, dtype=torch.float32 if place else source.dtype)
            if need and source is not None
            else None
            for place, (need, source) in enumerate(zip(needed, sources, strict=True))
        ]
        sums = torch.zeros(3, dtype=torch.float32, device=hidden.device)
        step = positions_at_once(len(weight), hidden.device)

        for start in range(0, len(targets), step):
            chunk = slice(start, min(start + step, len(targets)))
            leaves = [hidden[chunk], *sources[1:]]
            leaves = [
                None if leaf is None else leaf.detach().requires_grad_(need)
                for leaf, need in zip(leaves, needed, strict=True)
            ]
            with torch.set_grad_enabled(any(needed)):
                logits = _project(*leaves, finish=finish)  # (n, V), fp32
                parts = _chunk_losses(
                    logits, targets[chunk], read_teacher(chunk.start, chunk.stop), objective
                )
            sums += torch.stack([part.detach() for part in parts])
            _add_gradients(parts[0], leaves, grads, chunk)

        ctx.save_for_backward(*grads)
        ctx.dtypes = [None if source is None else source.dtype for source in (hidden, weight, bias)]
        return sums[0], sums[1], sums[2]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass has taken."""
        scaled = [
            None if grad is None else (grad * grad_outputs[0]).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None, None, None


def _project(hidden: Any, weight: Any, bias: Any, *, finish: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the student's logits (n, V) of hidden states (n, d), in fp32."""
    logits = (hidden @ weight.T).float()
    if bias is not None:
        logits = logits + bias.float()
    return finish(logits)


def _chunk_losses(
    logits: Tensor, targets: Tensor, teacher: Tensor | TopK, objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed loss, divergence and cross-entropy of a chunk."""
    if isinstance(teacher, TopK):
        student = gather_top(logits / objective.temperature, teacher.ids)  # (n, k + 1)
        taught = teacher.log_probs
    else:
        # the larger model of a family may have more rows of padding behind its vocabulary
        shared = min(logits.shape[-1], teacher.shape[-1])
        student = (logits[:, :shared] / objective.temperature).log_softmax(dim=-1)
        taught = (teacher[:, :shared].float() / objective.temperature).log_softmax(dim=-1)

    divergence = find_divergence(taught, student, objective.kind, beta=objective.beta).sum()
    if objective.hard_weight:
        hard = cross_entropy(logits, targets, reduction="sum")
    else:
        with torch.no_grad():
            hard = cross_entropy(logits.detach(), targets, reduction="sum")
    return objective.combine(divergence, hard), divergence, hard


def _add_gradients(loss: Tensor, leaves: list[Any], grads: list[Any], chunk: slice) -> None:
    """Add a chunk's gradients: of hidden states in their place, of weights summed."""
    wanted = [place for place, grad in enumerate(grads) if grad is not None]
    if not wanted:
        return
    found = torch.autograd.grad(loss, [leaves[place] for place in wanted])
    for place, grad in zip(wanted, found, strict=True):
        if place == 0:
            grads[0][chunk] = grad
        else:
            grads[place] += grad.float()
