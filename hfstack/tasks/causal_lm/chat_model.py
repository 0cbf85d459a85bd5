"""Load a causal model, and let it answer a conversation as in its training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer
from trl import ModelConfig

from hfstack.errors import DataError
from hfstack.models.context import context_length
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.runs.model_folder import find_causal_lm, refuse_other_model
from hfstack.tasks.causal_lm.generate import Completion, generate_from_ids
from hfstack.tasks.causal_lm.prompt_format import PromptFormat, encode_prompt, find_prompt_format
from hfstack.tasks.causal_lm.sampling import SamplingArgs
from hfstack.tokens.chat import stop_at_end_of_turn
from hfstack.tokens.seams import answer_opening, decode_answer
from hfstack.tokens.special_tokens import end_token_ids

# Of the context, what is kept free for an answer by leaving out old turns.
_ANSWER_SHARE = 4

Turns = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class ChatModel:
    """A model in evaluation mode, and how it is asked."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompt_format: PromptFormat
    context: int | None  # tokens of prompt and answer together; None without a bound
    opening: str  # what the chat template writes before an answer

    @property
    def uses_template(self) -> bool:
        """Return whether turns are rendered by the chat template."""
        return self.prompt_format.kind == "chat"


@dataclass(frozen=True)
class FittedPrompt:
    """The ids of a prompt that leaves room for an answer."""

    token_ids: list[int]
    left_out: int  # turns at the beginning that did not fit
    room: int | None  # tokens that are left for the answer; None without a bound


def load_chat_model(name: str, *, as_chat: bool | None = None) -> ChatModel:
    """Load a run, an adapter, a checkpoint or a model of the Hub, to be talked to.

    Args:
        name: its folder or Hub id.
        as_chat: whether the chat template is used; None for as it was trained.

    Raises:
        CheckpointError: there is no causal language model at that place.
        ConfigError: the chat template is asked for, and there is none.
    """
    folder = find_causal_lm(name)
    if not Path(folder).is_dir():
        _refuse_on_the_hub(folder)
    args = ModelConfig(model_name_or_path=folder, dtype="auto")
    tokenizer = load_tokenizer(args)
    model: Any = load_causal_lm(args, tokenizer)
    prompt_format = find_prompt_format(folder, tokenizer, as_chat=as_chat)
    chat = prompt_format.kind == "chat"
    if chat:
        stop_at_end_of_turn(model, tokenizer)

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return ChatModel(
        name=folder,
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        prompt_format=prompt_format,
        context=context_length(model.config),
        opening=answer_opening(tokenizer) if chat else "",
    )


def fit_prompt(chat_model: ChatModel, turns: Turns, *, max_new_tokens: int) -> FittedPrompt:
    """Return the ids of a conversation, without its oldest turns where it is too long.

    They are left out in pairs of question and answer, never the system turn, until a quarter of the
    context, or `max_new_tokens` if that is less, is free. Plain text is the last turn alone.

    Raises:
        DataError: the last turn alone leaves no room for an answer, or the template refuses the
            turns.
    """
    tokenizer, kind = chat_model.tokenizer, chat_model.prompt_format.kind
    if not chat_model.uses_template:
        ids = encode_prompt(tokenizer, str(turns[-1]["content"]), kind)
        return _leave_room(chat_model, ids, 0)

    first = 1 if turns[0]["role"] == "system" else 0
    system, rest = list(turns[:first]), list(turns[first:])
    context, left_out = chat_model.context, 0
    while True:
        ids = encode_prompt(tokenizer, [*system, *rest[left_out:]], kind)
        needed = 0 if context is None else min(max_new_tokens, context // _ANSWER_SHARE)
        if context is None or len(ids) + needed <= context or left_out + 2 >= len(rest):
            return _leave_room(chat_model, ids, left_out)
        left_out += 2


def answer(
    chat_model: ChatModel,
    prompt: FittedPrompt,
    sampling: SamplingArgs,
    *,
    max_new_tokens: int,
    show: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> Completion:
    """Return the answer to a prompt, handing its text on as it comes.

    Args:
        sampling: all there is to it; nothing is taken from the model's own settings.
        max_new_tokens: longest answer; less where the context ends before.
        show: is given the next piece of text.
        should_stop: asked after each token.
    """
    longest = max_new_tokens if prompt.room is None else min(max_new_tokens, prompt.room)
    stream = _AnswerStream(chat_model, prompt.token_ids, show)
    completion = generate_from_ids(
        chat_model.model,
        chat_model.tokenizer,
        [prompt.token_ids],
        max_new_tokens=longest,
        **sampling.sampling(),
        opening=chat_model.opening,
        streamer=stream,
        should_stop=should_stop,
    )[0]

    # What was held back: white space, or a character that never got its last byte.
    show(completion.completion.removeprefix(stream.shown))
    return completion


class _AnswerStream(BaseStreamer):
    """Hands on the text of an answer while its tokens come.

    What the next token may still change is held back: half a character, and the white space that
    may be the template's opening.
    """

    def __init__(
        self, chat_model: ChatModel, prompt_ids: Sequence[int], show: Callable[[str], None]
    ) -> None:
        self.shown = ""
        self._tokenizer, self._opening = chat_model.tokenizer, chat_model.opening
        self._ends = end_token_ids(chat_model.model, chat_model.tokenizer)
        self._prompt_ids, self._show = prompt_ids, show
        self._answer_ids: list[int] | None = None

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, which comes first, or the next token."""
        if self._answer_ids is None:
            self._answer_ids = []
            return

        self._answer_ids += [one for one in value.flatten().tolist() if one not in self._ends]
        text = decode_answer(
            self._tokenizer, self._prompt_ids, self._answer_ids, opening=self._opening
        )
        is_opening = bool(self._opening) and self._opening.startswith(text)
        if text.endswith("\N{REPLACEMENT CHARACTER}") or is_opening:
            return
        if text.startswith(self.shown):
            self._show(text[len(self.shown) :])
            self.shown = text

    def end(self) -> None:
        """Do nothing: the whole answer is known to who asked for it."""


def _refuse_on_the_hub(name: str) -> None:
    """Raise CheckpointError when a model of the Hub is no causal language model."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except OSError:
        return  # an adapter, or nothing: loading says which
    refuse_other_model(name, config)


def _leave_room(chat_model: ChatModel, token_ids: list[int], left_out: int) -> FittedPrompt:
    """Return the prompt with the room behind it; a DataError when there is none."""
    if chat_model.context is None:
        return FittedPrompt(token_ids, left_out, None)

    room = chat_model.context - len(token_ids)
    if room < 1:
        raise DataError(
            f"this message has {len(token_ids)} tokens and leaves no room for an answer in the "
            f"context of {chat_model.context}: shorten it"
        )
    return FittedPrompt(token_ids, left_out, room)
