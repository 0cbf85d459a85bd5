"""Compare a saved model, loaded as its reader would, with the one in memory.

Both read the same batch of token ids. What is lost between memory and disk changes logits: tied
embeddings that a merge has untied, tensors under names that a reader does not know, a head that was
left out, another number format.

Legend: B rows, T tokens, V rows of the embedding.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from trl import ModelConfig

from hfstack.errors import CheckpointError
from hfstack.models.context import context_length
from hfstack.models.evaluation_mode import evaluation_mode

_ROWS, _TOKENS = 8, 16
_NEWEST_TOKENS = 32  # added last, such as special tokens, for which an embedding may have grown

# In fp32 a share of the largest logit, or of 1 where that is smaller: merging a tiny adapter rounds
# by 1e-5. In 16 bits merging rounds each weight by 0.4 %, so that there the mean difference is
# compared, as a share of the logits' standard deviation.
SAVED_TOLERANCE = 1e-4
SAVED_HALF_TOLERANCE = 0.05

# a reader may hold the model while it is loaded, and some activations
_ROOM = 1.1

ProbeLogits = list[torch.Tensor]
Reader = Callable[[ModelConfig], Any]
"""Loads a finished model from the folder that `model_name_or_path` names."""


def read_logits(model: Any) -> ProbeLogits:
    """Return a model's logits in fp32 on the CPU; without a head, its hidden states.

    Args:
        model: a transformer for text or an adapter on one; its mode is kept.
    """
    ids = _probe_ids(model).to(model.device)  # (B, T)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids

    with evaluation_mode(model), torch.no_grad(), _without_autocast(model):
        outputs = model(**inputs, return_dict=True)

    named = {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    logits = [value for name, value in named.items() if name.endswith("logits")]
    return [value.float().cpu() for value in logits or named.values()]


def compare_with_saved(
    trained: ProbeLogits, model: Any, folder: Path, read: Reader, *, merged: bool = False
) -> dict[str, Any]:
    """Load what was saved and compare its logits with those of the trained model.

    Args:
        trained: logits of the trained model, from `read_logits`.
        model: the model in memory that was saved, for its size, device and number format.
        folder: where it was saved.
        read: loads it as whoever uses it would.
        merged: an adapter was merged into it since `trained` was read, which rounds in 16 bits.

    Returns:
        What run.json says: `largest_difference`, `allowed` and `seconds`, or why it was `skipped`.

    Raises:
        CheckpointError: the logits differ.
    """
    began = time.perf_counter()
    if (reason := _too_little_memory(model)) is not None:
        return {"skipped": reason}

    quantized = _quantization(model)
    saved = read(
        ModelConfig(
            model_name_or_path=str(folder),
            dtype=str(model.dtype).removeprefix("torch."),
            attn_implementation=model.config._attn_implementation,
            **quantized,
        )
    )
    # weights in few bits are loaded where they stay
    found = read_logits(saved if quantized else saved.to(model.device))
    del saved

    rounds = model.dtype != torch.float32 and (merged or isinstance(model, PeftModel))
    difference, allowed = _compare(trained, found, rounds=rounds)
    return check_difference(folder, difference, allowed, began=began)


def check_difference(
    folder: Path, difference: float, allowed: float, *, began: float, numbers: str = "logits"
) -> dict[str, Any]:
    """Return what run.json says of a saved model that gives what the trained one gave.

    Args:
        folder: where it was saved.
        difference: of its numbers from those of the trained model.
        allowed: how large that may be.
        began: `time.perf_counter()` before it was loaded.
        numbers: what they are called in a message.

    Raises:
        CheckpointError: they differ by more.
    """
    # not `difference > allowed`, which is false for NaN
    if not difference <= allowed:
        raise CheckpointError(
            f"{folder} is not what was trained: loaded again, its {numbers} differ by up to "
            f"{difference:.3g} (allowed: {allowed:.3g}); the files stay there, but use them for "
            "nothing"
        )

    return {
        "largest_difference": difference,
        "allowed": allowed,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _probe_ids(model: Any) -> torch.Tensor:
    """Return the batch that both models read: random ids, and the newest ones.

    A row ends with the eos token and has no other one, because encoder-decoders read a class there.
    """
    config = model.config.get_text_config()
    rows = int(model.get_input_embeddings().weight.shape[0])
    tokens = min(_TOKENS, context_length(model.config) or _TOKENS)

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, rows, (_ROWS * tokens,), generator=generator)  # (B * T,)
    newest = torch.arange(max(0, rows - _NEWEST_TOKENS), rows)[: len(ids)]
    ids[: len(newest)] = newest
    ids = ids.view(_ROWS, tokens)  # (B, T)

    eos = getattr(config, "eos_token_id", None)  # some configurations name none
    if isinstance(eos, int):
        ids[ids == eos] = (eos + 1) % rows
        ids[:, -1] = eos
    return ids


@contextmanager
def _without_autocast(model: Any) -> Iterator[None]:
    """Run a model in the number format of its weights, whatever training computes in.

    accelerate puts its autocast around the object's `forward`, and keeps the former one beside it.
    """
    plain = model.__dict__.get("_original_forward")
    if plain is None:
        yield
        return

    wrapped, model.forward = model.forward, plain
    try:
        yield
    finally:
        model.forward = wrapped


def _compare(trained: ProbeLogits, found: ProbeLogits, *, rounds: bool) -> tuple[float, float]:
    """Return the difference of two models' logits, and how large it may be.

    It is the largest one, or the mean one where weights were rounded to 16 bits on the way.
    """
    # a head of another size, or another head
    if [value.shape for value in trained] != [value.shape for value in found]:
        return float("inf"), 0.0

    one, other = (torch.cat([value.flatten() for value in values]) for values in (trained, found))
    differences = (one - other).abs()  # (logits,)
    if rounds:
        return float(differences.mean()), SAVED_HALF_TOLERANCE * float(one.std())
    return float(differences.max()), SAVED_TOLERANCE * max(1.0, float(one.abs().max()))


def _too_little_memory(model: Any) -> str | None:
    """Return why a second copy of a model cannot be loaded, or None."""
    needed = _ROOM * sum(
        parameter.numel() * parameter.element_size() for parameter in model.parameters()
    )
    free = {"cpu": psutil.virtual_memory().available}
    if model.device.type == "cuda":
        cached = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(
            model.device
        )
        free["cuda"] = torch.cuda.mem_get_info(model.device)[0] + cached

    for place, available in free.items():
        if needed > available:
            return (
                f"a second copy needs {needed / 2**30:.1f} GiB, and the {place} has "
                f"{available / 2**30:.1f} GiB free"
            )
    return None


def _quantization(model: Any) -> dict[str, Any]:
    """Return the settings by which a model's weights were loaded in few bits; or {}."""
    found = getattr(model.config, "quantization_config", None)
    if found is None:
        return {}
    if found.load_in_8bit:
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": found.bnb_4bit_quant_type,
        "use_bnb_nested_quant": found.bnb_4bit_use_double_quant,
    }
