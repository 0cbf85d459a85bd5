"""Compute the next-token loss from hidden states, without the (B, T, V) logits.

Stock causal models compute all logits, copy them to fp32 and keep them for the backward pass; under
mixed precision the launcher copies them once more. Here the head runs over a few hundred positions
at a time, and each chunk's gradient is taken on the spot. The idea is that of Liger Kernel (Hsu et
al. 2024, arXiv:2410.10989, section 3.2), written in plain PyTorch so that it runs on every device.

Legend: B rows, T positions, N = B * (T - 1) scored positions, d hidden size, V vocabulary.
"""

import functools
import types
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from hfstack.logs import get_logger
from hfstack.models.cache import CACHE_NAME
from hfstack.models.evaluation_mode import evaluation_mode
from hfstack.models.output_head import (
    OutputHead,
    body_of,
    find_linear_head,
    picker_of_body_inputs,
    product_dtype,
)
from hfstack.models.probes import embedding_rows, random_ids
from hfstack.tokens.special_tokens import IGNORED_LABEL

logger = get_logger(__name__)

# How far the loss of a few tokens may be from the model's own, as a share of it.
_TOLERANCE, _HALF_TOLERANCE = 1e-5, 1e-2


def use_fused_loss(
    model: PreTrainedModel, *, chunk: int = 512, head: OutputHead | None = None
) -> bool:
    """Make the model's training forward return the loss alone, without the logits.

    Return whether it could. A model is left as it is whose logits are not one matrix product of its
    hidden states, with a transform before it or a bias, a scale and a soft cap behind it; and one
    whose own loss is more than the cross-entropy of the next token, such as that of routers.
    Evaluation without labels, generation and every other use of the model are untouched.

    Args:
        model: the model.
        chunk: positions of one matrix product.
        head: how logits come of hidden states, taken as it is; None to find and prove it, for which
            the weights need to be there.
    """
    if head is not None:
        model.forward = types.MethodType(_fused_forward(model, head, chunk), model)
        return True
    if embedding_rows(model) == 0:
        return _stays_stock(model, "its weights are in shards")
    if (head := find_linear_head(model)) is None:
        return _stays_stock(model, "its logits are no matrix product of its hidden states")

    with torch.random.fork_rng(devices=[]):
        own = _probe_loss(model)
        stock_forward = model.forward
        model.forward = types.MethodType(_fused_forward(model, head, chunk), model)
        fused = _probe_loss(model)

    allowed = _TOLERANCE if model.dtype == torch.float32 else _HALF_TOLERANCE
    if own is not None and fused is not None and abs(own - fused) <= allowed * abs(own):
        return True
    model.forward = stock_forward
    return _stays_stock(model, f"its own loss of a few tokens is {own}, the fused one {fused}")


def _stays_stock(model: PreTrainedModel, why: str) -> bool:
    """Say that the loss is computed from all logits, and why."""
    logger.info("the loss of %s is not fused: %s", type(model).__name__, why)
    return False


def _probe_loss(model: PreTrainedModel) -> float | None:
    """Return the loss of a few random tokens, or None where there is none."""
    ids = random_ids(model, 2, 8)  # (B, T)
    try:
        with evaluation_mode(model), torch.no_grad():
            return float(model(input_ids=ids, labels=ids).loss)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        logger.debug("the probe of the fused loss ended in %r", error)
        return None


def _fused_forward(model: PreTrainedModel, head: OutputHead, chunk: int) -> Callable[..., Any]:
    """Return the training forward pass of a model whose head is known."""
    stock_forward = model.forward
    body, last = body_of(model), model.get_submodule(head.modules[-1])
    pick_inputs = picker_of_body_inputs(model)

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

        inputs = pick_inputs({"input_ids": input_ids} | inputs)
        states = body(**inputs)[0][:, :-1]  # (B, T - 1, d)
        hidden = head.transform(self, states)
        targets = labels[:, 1:].reshape(-1)  # (N,)

        dtype = product_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            total = LinearCrossEntropy.apply(
                hidden.reshape(-1, hidden.shape[-1]).to(dtype),
                last.weight,
                targets,
                chunk,
                torch.is_grad_enabled(),
                last.bias,
                head.scale,
                head.cap,
            )

        # Over accumulated micro-batches the Trainer counts the scored positions of all of them.
        count: Any = num_items_in_batch
        if count is None:
            count = (targets != IGNORED_LABEL).sum()
        return CausalLMOutput(loss=cast(Any, total) / count)

    return forward


class LinearCrossEntropy(torch.autograd.Function):
    """Sum -log softmax(h W^T)[target] over positions; with bias, scale and soft cap.

    The gradients are taken in the forward pass, chunk by chunk.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        with_gradients: bool,
        bias: Tensor | None = None,
        scale: float = 1.0,
        cap: float | None = None,
    ) -> Tensor:
        """Return the summed loss in nats, fp32.

        Args:
            hidden: (N, d), in the dtype that the matrix products run in.
            weight: (V, d), the output embedding.
            targets: (N,), ids; -100 marks a position that is not scored.
            chunk: positions per matrix product; (chunk, V) is the largest tensor made.
            with_gradients: take the gradients as well; off under no_grad.
            bias: (V,), added to the products.
            scale: that they are multiplied by then.
            cap: c of c tanh(logits / c), which they go through last.
        """
        weight_cast = weight.to(hidden.dtype)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        # (V, d) in fp32 is more than all else here: not for a frozen head, nor for an evaluation
        grad_weight = None
        if with_gradients and ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)

        # All chunks write into the same rows: memory that is fresh for each of them costs page
        # faults on a CPU.
        rows = (min(chunk, len(targets)), len(weight))  # (n, V)
        logits_rows = hidden.new_empty(rows, dtype=torch.float32)
        shares_rows = torch.empty_like(logits_rows)
        in_fp32 = hidden.dtype == torch.float32
        products_rows = logits_rows if in_fp32 else hidden.new_empty(rows)

        for start in range(0, len(targets), chunk):
            h = hidden[start : start + chunk]  # (n, d)
            target = targets[start : start + chunk]  # (n,)
            scored = target != IGNORED_LABEL
            index = target.clamp_min(0)[:, None]  # (n, 1)
            logits, shares = logits_rows[: len(h)], shares_rows[: len(h)]  # (n, V)
            products = torch.mm(h, weight_cast.T, out=products_rows[: len(h)])
            if not in_fp32:
                logits.copy_(products)
            if bias is not None:
                logits += bias
            _scale_and_cap(logits, scale, cap)

            # The normalizer is that of the likeliest token, whose share cannot underflow:
            # log(sum exp) = logit - log(share). One pass of softmax serves loss and gradient.
            torch.softmax(logits, dim=-1, out=shares)
            normalizer = logits.amax(dim=-1) - shares.amax(dim=-1).log()  # (n,)
            losses = normalizer - logits.gather(1, index)[:, 0]
            total += torch.where(scored, losses, 0.0).sum()
            if not with_gradients:
                continue

            # d loss / d logits = softmax - one_hot, in place of the softmax
            gradient = shares.scatter_add_(
                1, index, torch.full_like(index, -1, dtype=torch.float32)
            )
            _multiply_by_slope(gradient, logits, scale, cap)
            if grad_bias is not None:
                grad_bias += scored.float() @ gradient

            # Unscored positions are left out of (n, d), which is smaller than (n, V).
            if not in_fp32:
                gradient = products.copy_(gradient)
            grad_hidden[start : start + chunk] = (gradient @ weight_cast) * scored[:, None]
            if grad_weight is not None:
                grad_weight += gradient.T @ (h * scored[:, None])

        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass has taken."""
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        scale = grad_outputs[0]
        # A 0-d scale does not promote: bf16 * fp32 is computed in fp32 and rounded once.
        of_weight = None if grad_weight is None else (grad_weight * scale).to(ctx.weight_dtype)
        of_bias = None if grad_bias is None else (grad_bias * scale).to(ctx.weight_dtype)
        return grad_hidden * scale, of_weight, None, None, None, of_bias, None, None


def _scale_and_cap(logits: Tensor, scale: float, cap: float | None) -> None:
    """Multiply logits by a scale and put them through a soft cap, in place."""
    if cap is not None:
        logits.mul_(scale / cap).tanh_().mul_(cap)
    elif scale != 1.0:
        logits.mul_(scale)


def _multiply_by_slope(gradient: Tensor, logits: Tensor, scale: float, cap: float | None) -> None:
    """Multiply a gradient by the slope of a scale and a soft cap, in place.

    c tanh(s x / c) has the slope s (1 - tanh^2). The logits are used up.
    """
    if cap is not None:
        gradient.mul_(logits.square_().mul_(-scale / cap**2).add_(scale))
    elif scale != 1.0:
        gradient.mul_(scale)
