"""Find how a causal language model makes logits of its last hidden states.

Between the two may stand a transform (BERT, ModernBERT's decoder), a bias, a scale (Cohere,
Granite) and a soft cap (Gemma 2, Riviere et al. 2024, section 2). All of it is found by looking at
the model's own forward pass, and what was found must give the model's logits again. So the head can
be run on the positions alone that are scored, and in parts.

Legend: B rows, T tokens, d hidden size, V vocabulary, n positions.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfstack.models.evaluation_mode import evaluation_mode
from hfstack.models.probes import logits_of, random_ids, relative_difference, tolerance

_ROWS, _TOKENS = 2, 6

# Factors of the head's output: far below any soft cap, and far beyond it.
_SMALL, _LARGE = 1e-3, 1e6
_EXACT = 1e-5  # a scale that differs less from 1 is rounding
_ROUNDING_SHARE = 1e-4  # what is equal may differ by this share in another order of sums


@dataclass(frozen=True)
class OutputHead:
    """Modules from hidden states to logits, by name, then a scale and a soft cap."""

    modules: tuple[str, ...]
    scale: float = 1.0
    cap: float | None = None

    def logits(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of hidden states (..., d), as the model makes them."""
        for name in self.modules:
            hidden = model.get_submodule(name)(hidden)
        return self.finish(hidden)

    def finish(self, logits: Tensor) -> Tensor:
        """Return the scaled and capped logits of what the last module returned."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def transform(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """Return what the last module reads."""
        for name in self.modules[:-1]:
            hidden = model.get_submodule(name)(hidden)
        return hidden


def without_adapter(model: Any) -> Any:
    """Return the model itself, which PEFT's wrapper may be around."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the transformer below the head; the model itself where there is no head."""
    body = model.base_model
    if body is not model:
        return cast(PreTrainedModel, body)
    # Llama 4's prefix names a part of the larger model that it is cut out of
    inner = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    return inner[0] if inner else model


def find_output_head(model: PreTrainedModel) -> OutputHead | None:
    """Return the head of a causal model, or None where nothing gives its logits."""
    embedding: Any = model.get_output_embeddings()
    if embedding is None or body_of(model) is model:
        return None

    ids = random_ids(model, _ROWS, _TOKENS)
    with evaluation_mode(model), torch.no_grad():
        body = cast(Callable[..., Any], body_of(model))
        hidden = body(input_ids=ids, use_cache=False)[0]  # (B, T, d)
        with _watched(embedding, 1.0) as seen:
            expected = logits_of(model, input_ids=ids)  # (B, T, V)
        if not seen or seen[0][1].shape[:-1] != expected.shape[:-1]:
            return None

        scale, cap = _scale_and_cap(model, embedding, ids)
        read, _ = seen[0]
        for modules, factor in _chains(model, embedding, hidden, read):
            head = OutputHead(modules, scale * factor, cap)
            found = head.logits(model, hidden).float()
            if relative_difference(expected, found) <= tolerance(model) / 10:
                return head
    return None


def find_linear_head(model: PreTrainedModel) -> OutputHead | None:
    """Return the way to logits that ends in one matrix product, or None.

    With its bias, scale and soft cap, such a head can be run on a few positions at a time.
    """
    with torch.random.fork_rng(devices=[]):
        head = find_output_head(model)
    last = None if head is None else model.get_submodule(head.modules[-1])
    return head if type(last) is nn.Linear else None


def picker_of_body_inputs(model: PreTrainedModel) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what picks those inputs of a batch that the model's body takes.

    What the body does not know, the model does not hand down either.
    """
    known = inspect.signature(body_of(model).forward).parameters
    takes_all = any(kind.kind is kind.VAR_KEYWORD for kind in known.values())

    def pick(inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = inputs | {"use_cache": False, "return_dict": True}
        return {name: value for name, value in inputs.items() if takes_all or name in known}

    return pick


def product_dtype(hidden: Tensor) -> torch.dtype:
    """Return the type that autocast would give a matrix product of hidden states."""
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return hidden.dtype


def _scale_and_cap(
    model: PreTrainedModel, embedding: nn.Module, ids: Tensor
) -> tuple[float, float | None]:
    """Return what the model does to the output of its embedding.

    The output is made tiny, where only a scale shows, and huge, where a soft cap is reached.
    """
    with _watched(embedding, _SMALL) as seen:
        tiny = logits_of(model, input_ids=ids)
    given = seen[0][1].float()
    scale = float((given * tiny).sum() / (given * given).sum())
    if abs(scale - 1) < _EXACT:
        scale = 1.0

    with _watched(embedding, _LARGE) as seen:
        huge = logits_of(model, input_ids=ids)
    largest = float(huge.abs().max())
    grown = float((seen[0][1].float() * scale).abs().max())
    return scale, None if largest > grown / 2 else largest


def _chains(
    model: PreTrainedModel, embedding: nn.Module, hidden: Tensor, read: Tensor
) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield names of modules that may stand behind hidden states, with a scale.

    Args:
        hidden: (B, T, d), the body's output.
        read: (B, T, d), what the output embedding has read.
    """
    names = {module: name for name, module in model.named_modules()}
    last = names[embedding]
    if read.shape == hidden.shape:
        # a scale before the embedding is one behind it, where there is no bias
        factor = float((hidden.float() * read).sum() / (hidden.float() ** 2).sum())
        if relative_difference(hidden.float() * factor, read.float()) <= _ROUNDING_SHARE:
            yield (last,), 1.0 if abs(factor - 1) < _EXACT else factor

    inside = set(body_of(model).modules())
    outside = [
        (name, module)
        for name, module in model.named_modules()
        if name and module not in inside and module is not embedding
    ]
    for name, module in outside:
        returned = _try(module, hidden)
        if (
            returned is not None
            and returned.shape == read.shape
            and relative_difference(returned.float(), read.float()) <= _ROUNDING_SHARE
        ):
            yield (name, last), 1.0
    for name, _ in outside:
        if last.startswith(f"{name}."):
            yield (name,), 1.0


def _try(module: nn.Module, hidden: Tensor) -> Tensor | None:
    """Return what a module makes of hidden states, or None where it cannot."""
    try:
        returned = module(hidden)
    except (TypeError, RuntimeError, ValueError, NotImplementedError, AttributeError):
        return None
    return returned if isinstance(returned, Tensor) else None


@contextmanager
def _watched(module: nn.Module, factor: float) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Multiply a module's output, and list its inputs with what it then returned."""
    seen: list[tuple[Tensor, Tensor]] = []

    def multiply(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append((inputs[0], output * factor))
        return seen[-1][1]

    hook = module.register_forward_hook(multiply)
    try:
        yield seen
    finally:
        hook.remove()
