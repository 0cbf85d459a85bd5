"""Attribute a reward, or the probability of an answer, to tokens.

By integrated gradients, as for classifiers: the attributions add up to the difference that the
words make, of a reward between the whole text and one whose words are neutral, of an answer's
log-probability between its prompt and a neutral one. What closes a text or belongs to the chat
template stays. Legend: S points of the path, T tokens, H width of the embedding, V vocabulary.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from hfstack.errors import DataError
from hfstack.models.contents import ModelKind
from hfstack.models.context import context_length
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.runs.rendering import follow_rendering
from hfstack.tasks.causal_lm.generate import generate_from_ids
from hfstack.tasks.causal_lm.prompt_format import find_prompt_format
from hfstack.tasks.classification.attributions import (
    Explanation,
    integrate_gradients,
    neutral_id,
)
from hfstack.tasks.preferences.encode import encode_answer
from hfstack.tasks.preferences.reward_model import load_reward_model
from hfstack.tasks.preferences.rows import Text
from hfstack.tokens.chat import encode_for_generation, stop_at_end_of_turn
from hfstack.tokens.seams import opening_for


def explain_reward(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Text,
    answer: Text,
    *,
    steps: int = 32,
    tolerance: float = 0.01,
) -> Explanation:
    """Attribute the reward of an answer to the words of prompt and answer.

    Args:
        model: a reward model, in evaluation mode.
        prompt, answer: texts, or turns for the chat template.

    Raises:
        DataError: they are longer than the model reads.
        MissingExtraError: captum is not installed.
    """
    ids, _, end = _encode_for_reward(model, tokenizer, prompt, answer)
    tokens = torch.tensor([ids], device=next(model.parameters()).device)  # (1, T)
    special = _special(tokenizer, ids)
    mask = torch.ones_like(tokens)

    def reward(embedded: torch.Tensor) -> torch.Tensor:
        # ids beside embeddings would be refused; the head finds the last token by the mask
        more = mask.expand(len(embedded), -1)
        hidden = model(inputs_embeds=embedded, attention_mask=more).logits.float()
        return hidden[:, 0]  # (S,)

    whole, empty = _embed(model, tokenizer, tokens, special)
    found = integrate_gradients(reward, whole, empty, steps=steps, tolerance=tolerance)
    texts, places = _places(tokenizer, ids, end)
    shown = [(i, place) for i, place in enumerate(places) if not special[i]]
    return found.explain(texts, shown, label="reward")


def explain_answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Text,
    answer: Text,
    *,
    steps: int = 32,
    tolerance: float = 0.01,
) -> Explanation:
    """Attribute the log-probability of an answer to the words of its prompt.

    Args:
        model: a causal language model, in evaluation mode.
        prompt, answer: texts, or turns for the chat template.

    Raises:
        DataError: they are longer than the model reads, or the answer has no token.
        MissingExtraError: captum is not installed.
    """
    ids, begin, end = _encode_for_reward(model, tokenizer, prompt, answer)
    if end >= len(ids) or end == 0:
        raise DataError("nothing to explain: the prompt or the answer has no token")
    tokens = torch.tensor([ids], device=next(model.parameters()).device)  # (1, T)
    # the answer is what is explained: it stays, and so does what opens the text
    special = _special(tokenizer, ids)
    special[:begin] = [True] * begin
    special[end:] = [True] * (len(ids) - end)
    if all(special):
        raise DataError("nothing to explain: the prompt has no word")
    targets = tokens[:, end:]

    def log_probability(embedded: torch.Tensor) -> torch.Tensor:
        logits = model(inputs_embeds=embedded).logits[:, end - 1 : -1].float()  # (S, n, V)
        wanted = targets.expand(len(embedded), -1).unsqueeze(-1)  # (S, n, 1)
        return logits.log_softmax(-1).gather(-1, wanted).sum((1, 2))  # (S,)

    whole, empty = _embed(model, tokenizer, tokens, special)
    found = integrate_gradients(log_probability, whole, empty, steps=steps, tolerance=tolerance)
    texts, places = _places(tokenizer, ids, end)
    shown = [(i, place) for i, place in enumerate(places) if not special[i]]
    return found.explain(texts, shown, label="log-probability of the answer")


def _encode_for_reward(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompt: Text, answer: Text
) -> tuple[list[int], int, int]:
    ids, begin, end = encode_answer(tokenizer, prompt, answer)
    context = context_length(model.config)
    if context is not None and len(ids) > context:
        raise DataError(
            f"prompt and answer have {len(ids)} tokens, more than the model's {context}: explain a "
            "shorter one"
        )
    return list(ids), begin, end


def _special(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[bool]:
    """Return which tokens are of the template, or begin, separate or end texts."""
    known = {*tokenizer.all_special_ids}
    return [token in known for token in ids]


def _embed(
    model: Any, tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, special: list[bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embeddings of a text and of the neutral one, (1, T, H) each."""
    stays = torch.tensor([special], device=tokens.device)
    with torch.no_grad():
        embed = model.get_input_embeddings()
        neutral = torch.where(stays, tokens, neutral_id(tokenizer))
        return embed(tokens).detach(), embed(neutral).detach()


def _places(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], end: int
) -> tuple[tuple[str, str], list[tuple[int, int, int]]]:
    """Return prompt and answer as texts, and where each token stands in them."""
    texts, places = ["", ""], []
    for index in range(len(ids)):
        side = int(index >= end)
        first = 0 if side == 0 else end
        # decoded from the beginning: what a token adds depends on those before it
        text = str(tokenizer.decode(ids[first : index + 1], clean_up_tokenization_spaces=False))
        places.append((side, min(len(texts[side]), len(text)), len(text)))
        texts[side] = text
    return (texts[0], texts[1]), places


PairExplainer = Callable[..., Explanation]
"""Takes a prompt, an answer or None, steps and tolerance."""


def load_pair_explainer(args: ModelConfig, kind: ModelKind, *, answer_tokens: int) -> PairExplainer:
    """Load a reward model or a language model; return what explains an answer.

    Plain texts become turns where the model has learned on turns.

    Args:
        kind: of the model.
        answer_tokens: tokens of the longest answer that a language model gives itself.
    """
    tokenizer = load_tokenizer(args)
    name = args.model_name_or_path or ""
    if kind == "reward model":
        chat = follow_rendering(name, None, flag="as_chat", usual=False)
        model: Any = load_reward_model(args, tokenizer)
    else:
        chat = find_prompt_format(name, tokenizer).kind == "chat"
        model = load_causal_lm(args, tokenizer)
        if chat:
            stop_at_end_of_turn(model, tokenizer)
    model.to(Accelerator().device).eval().requires_grad_(False)

    def explain(prompt: Text, answer: Text | None, **settings: Any) -> Explanation:
        asked, given = prompt, answer
        if chat and isinstance(asked, str):
            asked = [{"role": "user", "content": asked}]
        if kind == "reward model":
            if given is None:
                raise DataError("a reward is of an answer: give --answers, or rows with one")
        elif given is None:
            given = _own_answer(model, tokenizer, asked, answer_tokens)
        if isinstance(asked, list) and isinstance(given, str):
            given = [{"role": "assistant", "content": given}]
        method = explain_reward if kind == "reward model" else explain_answer
        return method(model, tokenizer, asked, given or "", **settings)

    return explain


def prompts_with_answers(rows: Iterable[dict[str, Any]]) -> list[tuple[Text, Text]]:
    """Return prompts with answers of rows: completions, or both sides of pairs.

    Raises:
        DataError: a row has neither.
    """
    found: list[tuple[Text, Text]] = []
    for number, row in enumerate(rows, 1):
        answers = [row[name] for name in ("completion", "chosen", "rejected") if row.get(name)]
        if not row.get("prompt") or not answers:
            raise DataError(
                f"row {number} needs `prompt` and `completion`, or `chosen` and `rejected`; found "
                f"{', '.join(row)}"
            )
        found += [(row["prompt"], answer) for answer in answers]
    return found


def _own_answer(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: Text, longest: int) -> str:
    """Return what a model answers greedily."""
    ids = encode_for_generation(tokenizer, prompt)
    opening = opening_for([prompt], tokenizer)
    answers = generate_from_ids(model, tokenizer, [ids], max_new_tokens=longest, opening=opening)
    if not answers[0].completion.strip():
        raise DataError("the model answers nothing, so there is nothing to explain")
    return answers[0].completion
