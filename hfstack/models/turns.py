"""What ends a turn: a chat model stops at the token that its template writes after an answer, not at its eos alone."""

from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfstack.logs import get_logger
from hfstack.tokens.chat import render_chat

logger = get_logger(__name__)

_ANSWER = "xyzzy"  # what is looked for in the rendered conversation; any word that no template writes


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template writes after the assistant's answer; None without a template or such a token."""
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": _ANSWER}]
    rendered = str(render_chat(tokenizer, turns, tokenize=False))
    after = rendered.rpartition(_ANSWER)[2].strip()
    token_ids: list[int] = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    return token_ids[0] if token_ids and token_ids[0] in tokenizer.added_tokens_decoder else None


def stop_at_end_of_turn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Add the end of a turn to the ids at which the model's generation stops, and return all of them."""
    settings = cast(Any, model.generation_config)
    listed = settings.eos_token_id
    ends = [*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id, end_of_turn_id(tokenizer)]
    unique = list(dict.fromkeys(token for token in ends if token is not None))
    if unique and unique != listed and [listed] != unique:
        names = " ".join(str(name) for name in tokenizer.convert_ids_to_tokens(unique))
        logger.info("answers end at %s", names)
        settings.eos_token_id = unique
    return unique
