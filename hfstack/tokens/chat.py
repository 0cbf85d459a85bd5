"""Render conversations, encode prompts, and find the tokens that end a turn."""

from collections.abc import Sequence
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.shipped import CHAT_TEMPLATES, find_shipped

logger = get_logger(__name__)


def render_chat(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, Any]], **options: Any
) -> Any:
    """Return what `apply_chat_template` makes of a conversation.

    Args:
        options: of `apply_chat_template`.

    Raises:
        DataError: the template refuses the turns or is not one; in one line, with its reason and
            the turns' beginning.
    """
    try:
        return tokenizer.apply_chat_template(list(turns), **options)
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"the chat template fails: {reason} (on {str(list(turns))[:120]}); fix the turns or "
            "the tokenizer's chat_template.jinja, or give it another template"
        ) from error


_ANSWER = (
    "xyzzy"  # what is looked for in the rendered conversation; any word that no template writes
)


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template writes after the assistant's answer.

    None without a template or such a token.
    """
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": _ANSWER}]
    rendered = str(render_chat(tokenizer, turns, tokenize=False))
    after = rendered.rpartition(_ANSWER)[2].strip()
    token_ids: list[int] = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    return token_ids[0] if token_ids and token_ids[0] in tokenizer.added_tokens_decoder else None


def stop_at_end_of_turn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Add the end of a turn to the ids at which generation stops, and return all."""
    settings = cast(Any, model.generation_config)
    listed = settings.eos_token_id
    ends = [
        *(listed if isinstance(listed, list) else [listed]),
        tokenizer.eos_token_id,
        end_of_turn_id(tokenizer),
    ]

    unique = list(dict.fromkeys(token for token in ends if token is not None))
    if unique and unique != listed and [listed] != unique:
        names = " ".join(str(name) for name in tokenizer.convert_ids_to_tokens(unique))
        logger.info("answers end at %s", names)
        settings.eos_token_id = unique

    return unique


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: list[dict[str, Any]] | str) -> list[int]:
    """Return the token ids that a model reads before it answers.

    Of a conversation, or of plain text.
    """
    if isinstance(prompt, str):
        ids = cast(list[int], tokenizer(prompt)["input_ids"])
        return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids
    return _render_tokens(tokenizer, prompt, add_generation_prompt=True)["input_ids"]


def read_template(name: str) -> str:
    """Return a chat template by its path, or a shipped one by its file name.

    A path ends in .jinja or .j2.

    Raises:
        ConfigError: there is no such file.
    """
    path = find_shipped(name, CHAT_TEMPLATES)
    if path is not None:
        return path.read_text(encoding="utf-8")

    known = ", ".join(sorted(path.name for path in CHAT_TEMPLATES.glob("*.jinja")))
    raise ConfigError(f"--chat_template_path {name}: no such file; shipped templates: {known}")


def _render_tokens(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, Any]], **settings: Any
) -> Any:
    return render_chat(tokenizer, turns, tokenize=True, return_dict=True, **settings)


def text_of(prompt_or_completion: Any) -> str:
    """Return the text of a prompt or completion, plain or a conversation.

    The messages of a conversation become paragraphs.
    """
    if isinstance(prompt_or_completion, str):
        return prompt_or_completion
    return "\n\n".join(str(message["content"]) for message in prompt_or_completion)
