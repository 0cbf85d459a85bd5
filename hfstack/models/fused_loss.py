"""Compute the next-token loss from hidden states, without the (B, T, V) logits.

Stock causal models compute all logits, copy them to fp32 and keep them for the backward pass; under
mixed precision the launcher copies them once more. Here the head runs over a few hundred positions
at a time, and each chunk's gradient is taken on the spot. The idea is that of Liger Kernel (Hsu et
al. 2024, arXiv:2410.10989, section 3.2), written in plain PyTorch so that it runs on every device.

Legend: B rows, T positions, N = B * (T - 1) scored positions, d hidden size, V vocabulary.
"""

import functools
import types
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from hfstack.models.cache import CACHE_NAME
from hfstack.tokens.special_tokens import IGNORED_LABEL

# Models whose logits are exactly `output_embeddings(backbone(...))`: no soft-capping, no scaling,
# no extra losses. The value names a module between the two, if there is one.
PLAIN_HEADS: dict[str, str | None] = {
    "llama": None,
    "mistral": None,
    "qwen2": None,
    "qwen3": None,
    "gpt2": None,
    "hfstack_gru": "head_projection",
    "hfstack_lstm": "head_projection",
}


class LinearCrossEntropy(torch.autograd.Function):
    """Sum -log softmax(h W^T)[target] over positions.

    The gradients are taken in the forward pass, chunk by chunk.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, with_gradients: bool
    ) -> Tensor:
        """Return the summed loss in nats, fp32.

        Args:
            hidden: (N, d), in the dtype that the matrix products shall run in.
            weight: (V, d), the output embedding.
            targets: (N,), ids; -100 marks a position that is not scored.
            chunk: positions per matrix product; (chunk, V) is the largest tensor made.
            with_gradients: take the gradients as well; off under no_grad.
        """
        weight_cast = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)

        for start in range(0, len(targets), chunk):
            h = hidden[start : start + chunk]  # (n, d)
            target = targets[start : start + chunk]  # (n,)
            scored = target != IGNORED_LABEL
            index = target.clamp_min(0)[:, None]  # (n, 1)
            logits = (h @ weight_cast.T).float()  # (n, V)
            normalizer = torch.logsumexp(logits, dim=-1)  # (n,)
            losses = normalizer - logits.gather(1, index)[:, 0]
            total += torch.where(scored, losses, 0.0).sum()
            if not with_gradients:
                continue

            # d loss / d logits = softmax - one_hot, in place of the logits
            gradient = logits.sub_(normalizer[:, None]).exp_()
            gradient.scatter_add_(1, index, torch.full_like(index, -1, dtype=torch.float32))
            gradient = gradient.mul_(scored[:, None]).to(h.dtype)
            grad_hidden[start : start + chunk] = gradient @ weight_cast
            grad_weight += (gradient.T @ h).float()

        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass has taken."""
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_outputs[0]
        # A 0-d scale does not promote: bf16 * fp32 is computed in fp32 and rounded once.
        return grad_hidden * scale, (grad_weight * scale).to(ctx.weight_dtype), None, None, None


def use_fused_loss(model: PreTrainedModel, *, chunk: int = 512) -> bool:
    """Make the model's training forward return the loss alone, without the logits.

    Return whether it could: a model whose head is not one plain matrix product is left as it is.
    Evaluation without labels, generation and every other use of the model are untouched.
    """
    head = model.get_output_embeddings()
    if (
        model.config.model_type not in PLAIN_HEADS
        or not isinstance(head, torch.nn.Linear)
        or head.bias is not None
    ):
        return False

    stock_forward = model.forward
    between = PLAIN_HEADS[model.config.model_type]
    project = torch.nn.Identity() if between is None else model.get_submodule(between)

    # The Trainer reads the signature to know which columns to keep.
    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel,
        input_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Any,
    ) -> Any:
        if labels is None or inputs.get(CACHE_NAME) is not None:
            return stock_forward(input_ids=input_ids, labels=labels, **inputs)

        inputs |= {"use_cache": False, "return_dict": True}
        hidden = project(self.base_model(input_ids=input_ids, **inputs)[0][:, :-1])  # (B, T - 1, d)
        targets = labels[:, 1:].reshape(-1)  # (N,)

        # The products run in the type that autocast would give them.
        device_type, dtype = hidden.device.type, hidden.dtype
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            rows = hidden.reshape(-1, hidden.shape[-1]).to(dtype)
            total = LinearCrossEntropy.apply(
                rows, head.weight, targets, chunk, torch.is_grad_enabled()
            )

        # Over accumulated micro-batches the Trainer counts the scored positions of all of them.
        count: Any = num_items_in_batch
        if count is None:
            count = (targets != IGNORED_LABEL).sum()
        return CausalLMOutput(loss=cast(Any, total) / count)

    model.forward = types.MethodType(forward, model)
    return True
