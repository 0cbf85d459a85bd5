"""Generate text with a causal model, from prompts as texts or as token ids.

Legend: B prompts of a batch, T tokens of the longest prompt.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from hfstack.models.context import check_answers_fit, context_length
from hfstack.progress import follow
from hfstack.tasks.causal_lm.prompt_format import PromptKind, encode_prompt
from hfstack.tasks.causal_lm.sampling import (
    check_sampling,
    generation_settings,
    set_aside_settings,
)
from hfstack.tokens.seams import answer_opening, decode_answer
from hfstack.tokens.special_tokens import end_token_ids, padding_token_id
from hfstack.tokens.turns import extract_text


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model generated after one prompt."""

    prompt: str
    completion: str
    tokens: int  # length of the completion, eos included
    finished: bool  # it ended with an end-of-text token, not at the length limit
    token_ids: tuple[int, ...] = ()  # of the completion, eos included

    def as_row(self) -> dict[str, Any]:
        """Return it as it is written to a file, for people: without the ids."""
        return {name: value for name, value in vars(self).items() if name != "token_ids"}


def generate_from_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    *,
    kind: PromptKind = "document",
    max_new_tokens: int,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    batch_size: int = 16,
) -> list[Completion]:
    """Return one completion for each prompt, in order.

    By default a prompt starts at the token that begins a document in pretraining (bos, else eos),
    so that an empty one can be completed too. The other arguments are those of `generate_from_ids`.

    Args:
        prompts: texts; with the kind "chat" conversations too.
        kind: of the model's PromptFormat.

    Raises:
        DataError: a prompt is empty and the tokenizer has no token to start with, or it is a
            conversation and the kind is plain.
        ConfigError: a sampling setting is out of range, or the longest completion of a prompt would
            not fit into the model's context.
    """
    encoded = [encode_prompt(tokenizer, prompt, kind) for prompt in prompts]
    check_answers_fit(model.config, [len(ids) for ids in encoded], max_new_tokens)
    completions = generate_from_ids(
        model,
        tokenizer,
        encoded,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        batch_size=batch_size,
        opening=answer_opening(tokenizer) if kind == "chat" else "",
    )

    # The prompt as it was given: decoded ids would show the start token, or the template.
    return [
        dataclasses.replace(one, prompt=extract_text(prompt))
        for prompt, one in zip(prompts, completions, strict=True)
    ]


def generate_from_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    batch_size: int = 16,
    opening: str = "",
    streamer: BaseStreamer | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Completion]:
    """Return one completion for each prompt, in order, up to the end of text or turn.

    Prompts are padded on the left and masked, so the batch does not change the distribution.
    Sampling uses torch's global generator. Nothing is inherited from the model's generation_config
    but the tokens that end a text.

    Args:
        prompts: token ids, such as a chat template gives; none is empty.
        max_new_tokens: longest completion, its end token included.
        temperature: 0 for greedy decoding.
        top_p: sample among the likeliest tokens whose probabilities sum to this; 1 keeps all.
        top_k: sample among this many of the likeliest tokens; 0 keeps all.
        min_p: sample among tokens at least this share as likely as the likeliest; 0 keeps all.
        batch_size: prompts per call of the model's `generate`.
        opening: from `answer_opening` where the prompts are conversations: what the chat template
            writes between a prompt and its answer.
        streamer: is given the tokens as they come; with one prompt only.
        should_stop: asked after each token; True ends the completions there.

    Raises:
        ConfigError: a sampling setting is out of range.
    """
    filters: Any = {"top_p": top_p, "top_k": top_k, "min_p": min_p}
    check_sampling(max_new_tokens=max_new_tokens, temperature=temperature, **filters)
    pad = padding_token_id(tokenizer)
    ends = end_token_ids(model, tokenizer)
    settings = generation_settings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        **filters,
        end_ids=sorted(ends),
        pad_id=pad,
    )

    stopping = StoppingCriteriaList([_StopWhen(should_stop)] if should_stop else [])
    completions: list[Completion] = []
    batches = range(0, len(prompts), batch_size)
    for first in follow(batches, "generating batches", total=len(batches)):
        batch = [list(ids) for ids in prompts[first : first + batch_size]]
        width = max(map(len, batch))

        padded = [[pad] * (width - len(ids)) + ids for ids in batch]
        mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in batch]
        with set_aside_settings(model):
            output: torch.Tensor = cast(Any, model).generate(
                input_ids=torch.tensor(padded, device=model.device),  # (B, T)
                attention_mask=torch.tensor(mask, device=model.device),  # (B, T)
                generation_config=settings,
                streamer=streamer,
                stopping_criteria=stopping,
            )

        generated = output[:, width:].tolist()
        completions += [
            _as_completion(tokenizer, ids, row, ends, opening)
            for ids, row in zip(batch, generated, strict=True)
        ]

    return completions


class _StopWhen(StoppingCriteria):
    """Ends every completion of a batch as soon as a function says so."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self.should_stop = should_stop

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Return for each row of the batch whether it ends here, (B,)."""
        stops = torch.full((len(input_ids),), self.should_stop(), device=input_ids.device)
        return cast(torch.BoolTensor, stops)


def sample_pairs(
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    temperature: float,
) -> list[tuple[str, str]]:
    """Return (prompt, completion) pairs to look at while training.

    Sampled from all tokens; shorter where the context ends.
    """
    context = context_length(model.config)
    if context is not None:
        longest = max(len(encode_prompt(tokenizer, prompt, "document")) for prompt in prompts)
        max_new_tokens = max(1, min(max_new_tokens, context - longest))
    completions = generate_from_texts(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, temperature=temperature
    )
    return [(one.prompt, one.completion) for one in completions]


def _as_completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    generated: Sequence[int],
    ends: Sequence[int],
    opening: str,
) -> Completion:
    """Return the text up to the first end token; what follows it is padding."""
    end = next((index for index, token in enumerate(generated) if token in ends), None)
    token_ids = generated if end is None else generated[: end + 1]
    return Completion(
        prompt=str(tokenizer.decode(list(prompt), skip_special_tokens=False)),
        completion=decode_answer(tokenizer, prompt, generated[:end], opening=opening),
        tokens=len(token_ids),
        finished=end is not None,
        token_ids=tuple(token_ids),
    )
