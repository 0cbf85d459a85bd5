"""Text from models: completions of prompts by a causal model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hfstack.errors import ConfigError, DataError
from hfstack.tasks.causal_lm.metrics import document_start_id
from hfstack.tokens.special_tokens import end_token_ids


@dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt."""

    prompt: str
    completion: str
    tokens: int  # length of the completion, eos included
    finished: bool  # it ended with an end-of-text token, not at the length limit


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    batch_size: int = 16,
) -> list[Completion]:
    """Return one completion for each prompt, in order.

    Prompts are padded on the left and masked, so the batch does not change the distribution. An
    empty prompt starts at the token that begins a document in pretraining (bos, else eos). Sampling
    uses torch's global generator.

    Args:
        temperature: 0 for greedy decoding.
        top_p: keep the likeliest tokens whose probabilities sum to this; 1 keeps all.
        top_k: keep this many of the likeliest tokens; 0 keeps all.

    Raises:
        DataError: a prompt is empty and the tokenizer has no token to start with.
        ConfigError: a sampling setting is out of range.
    """
    check_sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k)
    start = document_start_id(tokenizer)
    pad = next(
        i
        for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, 0)
        if i is not None
    )

    ends = end_token_ids(model, tokenizer)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else None,
        top_p=top_p if temperature > 0 else None,
        # 0, not None: None would be upstream's default of 50
        top_k=top_k if temperature > 0 else None,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
    )

    results: list[Completion] = []
    for first in range(0, len(prompts), batch_size):
        batch = list(prompts[first : first + batch_size])
        encoded = [_start(tokenizer, prompt, start) for prompt in batch]
        width = max(map(len, encoded))

        # (B, T)
        tokens = torch.tensor(
            [[pad] * (width - len(ids)) + ids for ids in encoded], device=model.device
        )
        mask = torch.tensor(
            [[0] * (width - len(ids)) + [1] * len(ids) for ids in encoded], device=model.device
        )
        output: torch.Tensor = cast(Any, model).generate(
            input_ids=tokens, attention_mask=mask, generation_config=settings
        )

        for prompt, row in zip(batch, output[:, width:].tolist(), strict=True):
            end = next((i for i, token in enumerate(row) if token in ends), None)
            kept = row if end is None else row[:end]
            text = tokenizer.decode(kept, skip_special_tokens=True)
            results.append(
                Completion(prompt, str(text), len(row) if end is None else end + 1, end is not None)
            )

    return results


def sample_pairs(
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
) -> list[tuple[str, str]]:
    """Return (prompt, completion) pairs to look at while training.

    Sampled at temperature 0.8 from the 50 likeliest tokens.
    """
    completions = complete(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, temperature=0.8, top_k=50
    )
    return [(one.prompt, one.completion) for one in completions]


def check_sampling(*, max_new_tokens: int, temperature: float, top_p: float, top_k: int) -> None:
    """Raise ConfigError for a sampling setting out of range."""
    if max_new_tokens < 1:
        raise ConfigError(f"--max_new_tokens must be at least 1, got {max_new_tokens}")
    if not 0 <= temperature < math.inf:
        raise ConfigError(f"--temperature must be 0 (greedy) or above, got {temperature}")
    if not 0 < top_p <= 1:
        raise ConfigError(f"--top_p must be in (0, 1], got {top_p}")
    if top_k < 0:
        raise ConfigError(f"--top_k must be 0 (all tokens) or above, got {top_k}")


def _start(tokenizer: PreTrainedTokenizerBase, prompt: str, start: int | None) -> list[int]:
    """Return the prompt's tokens, after the token that begins documents, if any.

    As the model saw documents in pretraining.
    """
    token_ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if start is not None:
        return [start, *token_ids]
    if not token_ids:
        raise DataError(
            "a prompt is empty, and the tokenizer has no bos or eos token to start from"
        )
    return token_ids
