"""Check the policy that TRL's online trainers start from.

RLOO and GRPO pad prompts on the left and call the model without `position_ids`, and take the
reference model from the policy's own path.

Legend: T tokens of a probe, S tokens of padding before it, V vocabulary.
"""

from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from hfstack.errors import CheckpointError, ConfigError
from hfstack.models.contents import check_kind, identify_model
from hfstack.tokens.chat import stop_at_end_of_turn

_UNPADDED_TOKENS = 16
_PADDING_TOKENS = 8

# In float32 rounding is below 1e-4 nats. In 16 bits the angles of rotary positions round, so the
# mean over the tokens is compared instead of the largest difference.
_TOLERANCE_NATS = 1e-3
_HALF_TOLERANCE_NATS = 0.1


def check_starting_model(name: str | None) -> None:
    """Refuse what reinforcement learning cannot start from, before anything is loaded.

    Raises:
        CheckpointError: an architecture without weights, or no causal language model.
    """
    if name is None or name.endswith(".json"):
        raise CheckpointError(
            f"--model_name_or_path {name} has no weights: reinforcement learning starts from a "
            "trained model, such as the output directory of the sft recipe"
        )
    check_kind(name, ("causal language model", "model without a head"))


def check_reference(args: ModelConfig, *, beta: float) -> None:
    """Refuse an adapter whose base TRL would take as the reference, without a word.

    Of a whole model it loads the reference from the path in the model's configuration, which is
    the base's once the adapter is merged; of an adapter that is trained further it keeps a copy.

    Raises:
        CheckpointError: an adapter is trained whole with a KL.
    """
    name = args.model_name_or_path or ""
    found = identify_model(name, args.model_revision)
    if found.adapter and beta and not args.use_peft:
        raise CheckpointError(
            f"--model_name_or_path {name} is an adapter: the KL would be measured to its base "
            f"{found.base} instead of to it; add --use_peft to train the adapter further, or merge "
            "it first (hfstack run merge_checkpoint)"
        )


def prepare_policy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str | None
) -> None:
    """Refuse a model that TRL would train wrongly, and let it stop at a turn's end.

    Raises:
        ConfigError: left padding changes the model's log-probabilities, or nothing ends its
            completions.
    """
    if not stop_at_end_of_turn(model, tokenizer):
        raise ConfigError(
            f"{name}: neither the tokenizer nor the model has an eos token, so no answer would "
            "ever end"
        )

    difference, tolerance = left_padding_difference(model)
    if difference > tolerance:
        raise ConfigError(
            f"{name}: padding on the left changes the log-probabilities by {difference:.3g} nats, "
            "as it does for absolute position embeddings (GPT-2): TRL pads on the left without "
            "position_ids, so training would be wrong; use a model with rotary positions (Llama, "
            "Qwen, ...)"
        )


def left_padding_difference(model: PreTrainedModel) -> tuple[float, float]:
    """Return how much left padding changes log-probabilities, and the tolerance.

    Both in nats. The same tokens are read alone and after masked padding, as TRL's trainers call
    the model. In float32 the difference is the largest one, in 16 bits the mean.
    """
    # a probe of random tokens
    vocabulary = len(torch.as_tensor(model.get_input_embeddings().weight))
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(0, vocabulary, (1, _UNPADDED_TOKENS), generator=generator)  # (1, T)
    token_ids = token_ids.to(model.device)
    ones = torch.ones_like(token_ids)  # (1, T)
    padding = torch.zeros((1, _PADDING_TOKENS), dtype=torch.long, device=model.device)  # (1, S)

    # the model with and without padding
    call, training = cast(Any, model), model.training
    model.eval()
    with torch.no_grad():
        alone = call(input_ids=token_ids, attention_mask=ones).logits  # (1, T, V)
        padded = call(
            input_ids=torch.cat([padding, token_ids], dim=1),
            attention_mask=torch.cat([padding, ones], dim=1),
        ).logits[:, _PADDING_TOKENS:]  # (1, T, V)
    model.train(training)

    # log-probabilities of the next tokens
    targets = token_ids[:, 1:, None]  # (1, T - 1, 1)
    log_probs_alone = alone[:, :-1].float().log_softmax(-1).gather(2, targets)
    log_probs_padded = padded[:, :-1].float().log_softmax(-1).gather(2, targets)
    differences = (log_probs_alone - log_probs_padded).abs()  # (1, T - 1, 1)

    if alone.dtype == torch.float32:
        return float(differences.max()), _TOLERANCE_NATS
    return float(differences.mean()), _HALF_TOLERANCE_NATS
