"""Decode many prompts with a causal model, in slots that waiting ones take.

Only where a model decodes with such a cache what its full pass computes, which is measured on a few
random tokens; others generate by their own `generate`.

Legend: N prompts, r rows, t new tokens of a row, d hidden size, T tokens of a completion.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from hfstack.logs import get_logger
from hfstack.models.cache import CACHE_NAME, get_cache
from hfstack.models.evaluation_mode import evaluation_mode
from hfstack.models.output_head import OutputHead, body_of, find_output_head, without_adapter
from hfstack.models.probes import embedding_rows, random_ids
from hfstack.progress import follow
from hfstack.tasks.causal_lm.decoding.decode import Decoder
from hfstack.tasks.causal_lm.decoding.draw import SamplingSettings
from hfstack.tasks.causal_lm.decoding.step import DecodingStep

logger = get_logger(__name__)

# Prompts that are decoded before the next ones are looked at; their answers do not depend on how
# many are decoded at once.
_WINDOW = 256

# Of the probe: two slots for three prompts, so that one joins when the others are done.
_PROBED_LENGTHS, _PROBED_TOKENS, _PROBED_SLOTS = (3, 7, 3), 4, 2
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 0.2  # nats, as of rollouts


class CausalStep:
    """One step of a causal model whose head is known."""

    def __init__(self, model: PreTrainedModel, head: OutputHead) -> None:
        self.model = model
        self.head = head

    def __call__(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        /,
        *,
        attention_mask: Tensor | None,
        cache: Cache | None,
    ) -> DecodingStep:
        """Append tokens (r, t) to the cache, and return the logits of the next one."""
        carried: dict[str, Any] = {CACHE_NAME: cache}
        outputs = body_of(self.model)(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            use_cache=True,
            **carried,
        )
        hidden = outputs.last_hidden_state[:, -1]  # (r, d)
        logits = self.head.logits(self.model, hidden).float()
        return DecodingStep(logits, None, get_cache(outputs))


def find_step(model: PreTrainedModel | PeftModel) -> CausalStep | None:
    """Return the step of a model that decodes in slots as it scores, or None."""
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return None
    base = cast(PreTrainedModel, without_adapter(model))
    if isinstance(model, FSDPModule) or embedding_rows(base) == 0:
        return None
    if not cast(Any, base)._supports_default_dynamic_cache():
        return None  # it carries a state of its own

    try:
        # the run's own random numbers are not touched
        with torch.random.fork_rng(devices=[]), evaluation_mode(base), torch.no_grad():
            head = find_output_head(base)
            step = None if head is None else CausalStep(base, head)
            difference = float("nan") if step is None else _difference(step)
    except torch.OutOfMemoryError:
        raise
    # a model that knows no such cache fails in its own way, of which there are many
    except Exception as error:
        logger.debug("%s does not decode in slots: %r", type(base).__name__, error)
        return None

    allowed = _TOLERANCE if base.dtype == torch.float32 else _HALF_TOLERANCE
    return step if difference <= allowed else None  # not of NaN


def _difference(step: CausalStep) -> float:
    """Return by how many nats decoding in slots is away from a full pass."""
    model = step.model
    longest = random_ids(model, 1, max(_PROBED_LENGTHS))[0].tolist()
    prompts = [longest[:length] for length in _PROBED_LENGTHS]
    settings = SamplingSettings(
        max_new_tokens=_PROBED_TOKENS,
        stop_token_ids=(-1,),
        pad_token_id=0,
        temperature=0.0,
        batch_size=_PROBED_SLOTS,
    )
    decoder = Decoder(step, settings, config=model.config, device=model.device)
    if not decoder.refills:
        return float("nan")
    found = decoder.decode(prompts, [[1], [0, 2]])

    differences = []
    for prompt, tokens, log_probs in zip(prompts, found.tokens, found.log_probs, strict=True):
        ids = torch.cat([torch.tensor(prompt), tokens])[None].to(model.device)  # (1, P + T)
        logits = cast(Any, model)(input_ids=ids).logits[0, len(prompt) - 1 : -1]  # (T, V)
        whole = logits.float().log_softmax(-1).cpu().gather(1, tokens[:, None])[:, 0]  # (T,)
        differences.append((whole - log_probs).abs().max())
    # the largest of all, and NaN where one is
    return float(torch.stack(differences).max())


def decode_in_slots(
    step: CausalStep, prompts: Sequence[Sequence[int]], settings: SamplingSettings
) -> list[list[int]]:
    """Return the tokens of a completion of each prompt, its end included.

    Args:
        step: of the model.
        prompts: N times token ids, none of them empty.
        settings: how to sample, and how many are decoded at once.
    """
    model = step.model
    decoder = Decoder(step, settings, config=model.config, device=model.device)
    size = settings.batch_size or len(prompts)
    window = max(size, _WINDOW)
    completions: list[list[int]] = []

    firsts = range(0, len(prompts), window)
    for first in follow(firsts, f"generating {window} answers at a time", total=len(firsts)):
        part = [list(ids) for ids in prompts[first : first + window]]
        # what is read together is of like length; equal prompts are side by side, and read once
        order = sorted(range(len(part)), key=lambda row, part=part: (len(part[row]), part[row]))
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        found = decoder.decode(part, chunks)
        completions += [
            tokens[:length].tolist()
            for tokens, length in zip(found.tokens, found.lengths.tolist(), strict=True)
        ]

    return completions
