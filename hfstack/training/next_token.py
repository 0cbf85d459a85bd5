"""Prove that a causal model is trained on its own loss of the next token.

Four things that no error shows, each measured on the model itself:

- A family that `AutoModelForCausalLM` loads may read what follows a position (XLNet, CPM-Ant): what
  it learns to copy cannot be predicted when it generates.
- The Trainer counts labels behind the first of each row only where it knows the loss by the class's
  name. GPT-2's and BERT's it does not, and their loss comes out too small by that label. BART's
  decoder scores each token at its own place, where it was read.
- With `label_smoothing_factor` it shifts the labels of the classes that it knows by name alone: a
  GRU would learn to repeat the token that it reads.
- TRL's trainers multiply the last hidden states by the output embedding. In BERT, RoBERTa and
  ModernBERT's decoder a transform stands between the two, and other scales and soft caps have names
  that TRL does not look for.

Legend: B rows, T tokens, V vocabulary.
"""

import functools
import inspect
import types
from typing import Any, cast

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, Trainer
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.trainer_pt_utils import LabelSmoother
from trl.trainer.utils import FusedCausalLMOutput

from hfstack.errors import ConfigError
from hfstack.logs import get_logger
from hfstack.models.evaluation_mode import evaluation_mode
from hfstack.models.output_head import without_adapter
from hfstack.models.probes import (
    SAME_INPUT,
    logits_of,
    random_ids,
    relative_difference,
    require_causal,
    tolerance,
)
from hfstack.tokens.special_tokens import IGNORED_LABEL

logger = get_logger(__name__)

LOSS_OF_ITS_OWN = "loss_of_its_own"
"""An attribute of a forward pass whose loss is another than the class's, and shifts its labels."""

_ROWS, _TOKENS = 2, 12
_TRL_HEAD = "fused_lm_head"  # the argument that TRL adds to a model's forward pass


def settle_next_token_loss(trainer: Trainer) -> None:
    """Make the Trainer's loss that of the next token, by the model's own logits.

    Models that are no causal language models are left alone. In shards no process can run the
    model: there the labels are counted as such a loss needs, and nothing is measured.

    Raises:
        ConfigError: the model reads what follows a position.
    """
    model = _language_model(trainer)
    if model is None:
        return

    # what upstream decides by the name of the class; position 0 has nothing before it
    cast(Any, trainer)._loss_shifts_labels = True
    if trainer.label_smoother is not None and _computes_as_upstream(trainer):
        trainer.compute_loss_func = functools.partial(smoothed_loss, trainer.label_smoother)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return

    require_causal(model, "it would learn to copy, and not to predict")
    if _TRL_HEAD in inspect.signature(model.forward, follow_wrapped=False).parameters:
        temperature = float(getattr(trainer, "temperature", 1.0))
        for scored in (model, getattr(trainer, "ref_model", None)):
            if scored is not None:
                use_own_logits(scored, temperature=temperature)
    elif _uses_own_loss(trainer, model) and not _loss_is_shifted(model):
        logger.info(
            "%s scores each token at its own place: trained on the loss of the next token instead",
            type(model).__name__,
        )
        trainer.compute_loss_func = functools.partial(next_token_loss, _vocabulary(model))


def next_token_loss(
    vocabulary: int, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Return the mean loss of the next tokens.

    Args:
        vocabulary: number of ids.
        outputs: with `logits` (B, T, V).
        labels: (B, T), the same row of tokens, -100 where none is scored.
        num_items_in_batch: what the sum is divided by; None for the scored labels of this batch.
    """
    items: Any = num_items_in_batch
    return ForCausalLMLoss(outputs.logits, labels, vocabulary, num_items_in_batch=items)


def smoothed_loss(
    smoother: LabelSmoother,
    outputs: Any,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Return the mean smoothed loss of next tokens; shapes as in `next_token_loss`."""
    return smoother(outputs, labels, shift_labels=True, num_items_in_batch=num_items_in_batch)


def use_own_logits(model: Any, *, temperature: float = 1.0) -> bool:
    """Score tokens by the model's own logits, where TRL's head scores them otherwise.

    Return whether it did. All logits of a batch are made then.

    Args:
        model: that `add_fused_lm_head` was called on, perhaps with an adapter around it.
        temperature: that TRL divides the logits by.
    """
    inner = without_adapter(model)
    ids = random_ids(inner, _ROWS, _TOKENS)  # (B, T)
    with evaluation_mode(inner), torch.no_grad():
        logits = logits_of(inner, input_ids=ids)  # (B, T, V)
        expected = _log_probs(logits[:, :-1] / temperature, ids[:, 1:])  # (B, T - 1)
        try:
            found = inner(input_ids=ids, labels=ids, fused_lm_head=True).log_probs.float()
        except (AttributeError, RuntimeError):
            # TRL asks `base_model` for hidden states: Llama 4's is the model itself, which has
            # none, and those of RemBERT have another width than its output embedding
            found = expected.new_full(expected.shape, torch.inf)  # (B, T - 1)

    if relative_difference(expected, found) <= tolerance(inner):
        return False
    logger.info(
        "tokens are scored by all logits of %s: TRL's own head gives other ones",
        type(inner).__name__,
    )
    inner.forward = types.MethodType(_scoring_forward(inner, temperature), inner)
    return True


def _scoring_forward(model: Any, temperature: float) -> Any:
    """Return a forward pass that answers TRL's `fused_lm_head` from all logits."""
    forward = model.forward

    # `generate` and the Trainer read the signature
    @functools.wraps(type(model).forward)
    def scoring_forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        if not fused_lm_head or labels is None:
            given = {} if labels is None else {"labels": labels}
            return forward(*args, fused_lm_head=fused_lm_head, **given, **inputs)

        items = inputs.pop("num_items_in_batch", None)
        outputs = forward(*args, **inputs | {"use_cache": False})
        logits = outputs.logits[:, :-1].float() / temperature  # (B, T - 1, V)
        return _token_scores(logits, labels[:, 1:], items, getattr(outputs, "aux_loss", None))

    return scoring_forward


def _token_scores(
    logits: Tensor, targets: Tensor, items: Tensor | int | None, router_loss: Tensor | None
) -> FusedCausalLMOutput:
    """Return what TRL asks of a head: each field 0 where no label is scored.

    Args:
        logits: (B, T, V).
        targets: (B, T).
        items: what the summed loss is divided by; None for the scored targets.
        router_loss: of a mixture of experts.
    """
    scored = targets != IGNORED_LABEL
    log_probs = _log_probs(logits, targets.clamp_min(0)).masked_fill(~scored, 0)
    shares = logits.log_softmax(dim=-1)  # (B, T, V)
    with torch.no_grad():
        likeliest = logits.argmax(dim=-1) == targets
        mean = logits.mean(dim=-1)
        squares = torch.logsumexp(2 * shares, dim=-1)

    count: Any = scored.sum().clamp_min(1) if items is None else items
    return FusedCausalLMOutput(
        loss=-log_probs.sum() / count,
        log_probs=log_probs,
        entropy=-(shares.exp() * shares).sum(dim=-1).masked_fill(~scored, 0),
        log_sum_sq_probs=squares.masked_fill(~scored, 0),
        mean_logits=mean.masked_fill(~scored, 0),
        is_top1=likeliest & scored,
        label_mask=scored,
        aux_loss=router_loss,
    )


def _log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probabilities (B, T) of targets under logits (B, T, V)."""
    return logits.log_softmax(dim=-1).gather(-1, targets[..., None])[..., 0]


def _uses_own_loss(trainer: Trainer, model: Any) -> bool:
    """Return whether the loss is the one that the model's class computes."""
    return _computes_as_upstream(trainer) and not hasattr(model.forward, LOSS_OF_ITS_OWN)


def _computes_as_upstream(trainer: Trainer) -> bool:
    """Return whether neither Trainer nor recipe replaces the model's loss."""
    replaced = type(trainer).compute_loss is not Trainer.compute_loss
    return not replaced and trainer.compute_loss_func is None


def _loss_is_shifted(model: Any) -> bool:
    """Return whether the first label of a row is left out of the model's own loss.

    Raises:
        ConfigError: it has none of tokens alone.
    """
    ids = random_ids(model, 1, _TOKENS)  # (1, T)
    labels = ids.clone()
    labels[0, 0] = ids[0, 1] if ids[0, 1] != ids[0, 0] else ids[0, 2]
    try:
        with evaluation_mode(model), torch.no_grad():
            own = [float(model(input_ids=ids, labels=each).loss) for each in (ids, labels)]
    except ValueError as error:  # GIT's loss skips the tokens of a picture
        raise ConfigError(
            f"{type(model).__name__} computes no loss of tokens alone "
            f"({' '.join(str(error).split())[:120]}): name another model"
        ) from error
    return abs(own[0] - own[1]) <= SAME_INPUT * tolerance(model) * abs(own[0])


def _vocabulary(model: Any) -> int:
    """Return the number of ids, also of a model of text and pictures."""
    return model.config.get_text_config().vocab_size


def _language_model(trainer: Trainer) -> Any | None:
    """Return the causal model that is trained, without its adapter, or None."""
    inner = without_adapter(trainer.accelerator.unwrap_model(trainer.model))
    config: Any = getattr(inner, "config", None)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        return None
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return inner if isinstance(inner, causal) else None
