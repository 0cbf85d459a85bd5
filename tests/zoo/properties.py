"""Measure on a family's tiny model what recipes rely on, as their own probes do."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hfstack.errors import HfstackError
from hfstack.models.dropout import require_no_noise, turn_off_dropout
from hfstack.models.fused_loss import use_fused_loss
from hfstack.models.isolation import keep_documents_apart
from hfstack.models.probes import documents_apart, relative_difference
from hfstack.tasks.causal_lm.decoding.draw import SamplingSettings
from hfstack.tasks.rl.ppo.actor_critic import ActorCritic
from hfstack.tasks.rl.ppo.engines.fitting import fit_engine
from hfstack.tasks.rl.ppo.engines.interface import GenerateEngine
from hfstack.tasks.rl.ppo.engines.native import NativeEngine
from tests.zoo.families import (
    CAUSAL,
    ENCODER,
    ENCODER_DECODER,
    VOCABULARY,
    auto_class,
    logits_or_states,
)

PROPERTIES: dict[str, tuple[str, ...]] = {
    CAUSAL: ("packing", "fused loss", "head", "engine"),
    ENCODER: ("padding",),
    ENCODER_DECODER: ("padding",),
}
_BLOCK = 64
_PADDED = 1e-4  # a share of the largest logit, in fp32


def measure(kind: str, family: str, folder: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield name, state and figure of each property: `works`, `refused` or `traceback`."""
    probes: dict[str, Callable[[Any], str]] = {
        "packing": _packing,
        "fused loss": _fused_loss,
        "head": _head,
        "engine": _engine,
        "padding": _padding,
    }
    for name in PROPERTIES[kind]:
        torch.manual_seed(0)
        try:
            model = auto_class(kind, family).from_pretrained(folder).float()
            yield name, ("works", probes[name](model))
        except HfstackError as error:
            yield name, ("refused", " ".join(str(error).split()))
        except Exception as error:  # what a user must never see
            yield name, ("traceback", f"{type(error).__name__}: {str(error)[:120]}")


def _packing(model: Any) -> str:
    """How packed documents are kept apart, and how much of another is in their logits."""
    way = keep_documents_apart(model, "--isolate_documents", longest=_BLOCK)
    return f"{way}, {documents_apart(model).value:.0e}"


def _fused_loss(model: Any) -> str:
    return "fused" if use_fused_loss(model) else "the model's own"


def _head(model: Any) -> str:
    """How logits come of hidden states."""
    head = ActorCritic(model).output_head
    if head is None:
        return "own logits"
    scale = "" if head.scale == 1.0 else f", scale {head.scale:.3g}"
    cap = "" if head.cap is None else f", cap {head.cap:.3g}"
    return f"{' + '.join(head.modules)}{scale}{cap}"


def _engine(model: Any) -> str:
    """Which engine generates as the full pass scores, with dropout off."""
    actor_critic = ActorCritic(model)
    actor_critic.check_head()
    turn_off_dropout(actor_critic)
    require_no_noise(model, "--disable_dropout")
    settings = SamplingSettings(max_new_tokens=4, stop_token_ids=(2,), pad_token_id=0)
    engine = fit_engine(NativeEngine(settings), actor_critic)
    if not isinstance(engine, GenerateEngine):
        return "native"
    cache = "" if engine.use_cache else ", no cache"
    return f"generate{cache}" if engine.pads else f"generate{cache}, one length at a time"


def _padding(model: Any) -> str:
    """How far a padded row's logits are from those of the row alone; NaN is refused."""
    # beyond the special tokens; canine has no table of embeddings to ask for its vocabulary
    long, short = torch.randint(5, VOCABULARY, (2, 1, 17))  # (1, T) each
    short = short[:, :9]  # (1, T')
    pad = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
    padded = torch.nn.functional.pad(short, (0, 8), value=pad)
    inputs = {"input_ids": torch.cat([long, padded]), "attention_mask": torch.ones(2, 17).long()}
    inputs["attention_mask"][1, 9:] = 0
    alone = {"input_ids": short, "attention_mask": torch.ones_like(short)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"], alone["decoder_input_ids"] = short.repeat(2, 1), short

    with torch.no_grad():
        together = logits_or_states(model.eval()(**inputs))[1, :9]  # (T', V)
        expected = logits_or_states(model(**alone))[0, :9]  # (T', V)
    difference = relative_difference(expected, together)
    if not difference <= _PADDED:
        raise HfstackError(f"padding changes its logits by {difference:.2g} of the largest")
    return f"{difference:.0e}"
