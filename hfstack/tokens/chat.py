"""Render conversations, encode prompts, and find the tokens that end a turn."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from hfstack.errors import ConfigError, DataError, HfstackError
from hfstack.logs import get_logger
from hfstack.shipped import CHAT_TEMPLATES, find_shipped
from hfstack.tokens.special_tokens import as_token_ids, end_token_ids
from hfstack.tokens.template_limits import limited, refuse_large_operations

logger = get_logger(__name__)

# A template that is none, or that takes of a turn what it has not; of a program, all the rest.
_TEMPLATE_FAILURES = (
    *(TemplateError, TypeError, KeyError, ValueError, AttributeError, IndexError),
    *(ArithmeticError, MemoryError, RecursionError),
)

# What is searched in the rendered conversation: any word that no template contains.
_ANSWER = "xyzzy"


def read_chat_template(name: str) -> str:
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
    with _template_errors(tokenizer, turns):
        return tokenizer.apply_chat_template(list(turns), **options)


def render_with_answers(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] | None = None,
) -> tuple[str, str]:
    """Return the text of a conversation, and what is marked as the assistant's.

    The second is "" for a template without generation blocks.

    Raises:
        DataError: as `render_chat`.
    """
    # Late: it brings datasets, which an answer in a chat does not need.
    from trl.chat_template_utils import has_generation_markers

    with _template_errors(tokenizer, turns):
        template = tokenizer.get_chat_template(None, cast(Any, tools or None))
        marks = has_generation_markers(template)
        rendered = render_jinja_template(
            conversations=cast(Any, [list(turns)]),
            tools=cast(Any, list(tools or []) or None),
            chat_template=template,
            return_assistant_tokens_mask=marks,
            **cast(dict[str, Any], tokenizer.special_tokens_map),
        )

    (text,), spans = cast(tuple[list[str], list[list[tuple[int, int]]]], rendered)
    return text, "".join(text[start:end] for start, end in spans[0]) if marks else ""


@contextmanager
def _template_errors(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, Any]]
) -> Iterator[None]:
    """Raise what a template refuses as one line, and end one that takes too much."""
    templates = tokenizer.chat_template
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        refuse_large_operations(template or "")
    try:
        with limited():
            yield
    except HfstackError:
        raise
    except _TEMPLATE_FAILURES as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"the chat template fails: {reason} (on {str(list(turns))[:120]}); fix the turns or "
            "the tokenizer's chat_template.jinja, or give it another template"
        ) from error


def encode_for_generation(
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[dict[str, Any]] | str,
    tools: list[dict[str, Any]] | None = None,
) -> list[int]:
    """Return the token ids of a prompt up to its answer.

    The prompt is a conversation, with the schemas of its tools, or plain text. The eos token that
    some tokenizers add to a text is left out, since the answer follows.

    Raises:
        DataError: the chat template fails, or writes nothing of a turn that is plain text.
    """
    if isinstance(prompt, str):
        ids = cast(list[int], tokenizer(prompt)["input_ids"])
        return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids

    refuse_dropped_text(tokenizer)
    rendered = render_chat(
        tokenizer, prompt, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return rendered["input_ids"]


def refuse_dropped_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a chat template that writes nothing of a turn of plain text.

    Those of some vision models read content in parts alone, and drop all else without an error: a
    model would answer to nothing.

    Raises:
        DataError: it does so, or fails.
    """
    turns = [{"role": "user", "content": _ANSWER}]
    with _template_errors(tokenizer, turns):
        named = tuple((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
        dropped = _drops_text(tokenizer.get_chat_template(None, None), named)
    if dropped:
        raise DataError(
            "the chat template drops the text of turns (it reads lists of parts, as of text and "
            "images); give the tokenizer another one, such as --chat_template_path plain.jinja"
        )


@lru_cache(maxsize=64)
def _drops_text(template: str, special_tokens: tuple[tuple[str, str], ...]) -> bool:
    turns = [[{"role": "user", "content": _ANSWER}]]
    try:
        rendered = render_jinja_template(
            conversations=cast(Any, turns),
            chat_template=template,
            **cast(Any, dict(special_tokens)),
        )
    except _TEMPLATE_FAILURES:
        return False  # a user's turn alone may be refused: the real turns say what is wrong
    return _ANSWER not in "".join(cast(Any, rendered[0]))


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that the chat template renders after the assistant's answer.

    None without a template or such a token.
    """
    if tokenizer.chat_template is None:
        return None

    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": _ANSWER}]
    rendered = str(render_chat(tokenizer, turns, tokenize=False))
    after = rendered.rpartition(_ANSWER)[2].strip()

    # A word after the answer is text: only an added token can end a turn.
    token_ids: list[int] = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    return token_ids[0] if token_ids and token_ids[0] in tokenizer.added_tokens_decoder else None


def stop_at_end_of_turn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Add the end of a turn to the ids at which generation stops, and return all."""
    settings: Any = model.generation_config
    end_of_turn = as_token_ids(end_of_turn_id(tokenizer))
    ends = list(dict.fromkeys([*end_token_ids(model, tokenizer), *end_of_turn]))

    if ends != as_token_ids(settings.eos_token_id):
        names = " ".join(str(name) for name in tokenizer.convert_ids_to_tokens(ends))
        logger.info("answers end at %s", names)
        settings.eos_token_id = ends

    return ends
