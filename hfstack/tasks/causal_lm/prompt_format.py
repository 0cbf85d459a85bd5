"""Find how a model was asked while it trained, and encode prompts like that.

A tokenizer that hfstack trains has a chat template from the beginning, long before a model learns
it: whether to use it is said by what the runs behind the model recorded, not by its being there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from transformers import PreTrainedTokenizerBase

from hfstack.errors import ConfigError, DataError
from hfstack.runs.checkpoint_files import step_of
from hfstack.runs.record import RUN_FILE, RunRecord, read_run
from hfstack.runs.rendering import PRETRAINING, PUBLICATION, read_published_rendering
from hfstack.tokens.chat import encode_for_generation, render_chat
from hfstack.tokens.fast_encoding import document_start_id, start_token_id

PromptKind = Literal["chat", "prompt", "document"]
_KIND_OF_ROWS: dict[str, PromptKind] = {"chat": "chat", "plain": "prompt", "text": "document"}


@dataclass(frozen=True)
class PromptFormat:
    """How a prompt is encoded, and why that way, in a few words."""

    kind: PromptKind
    """chat: as a turn of the chat template; prompt: as it is; document: behind the token that
    begins a text in pretraining."""
    reason: str


def find_prompt_format(
    name: str, tokenizer: PreTrainedTokenizerBase, *, as_chat: bool | None = None
) -> PromptFormat:
    """Return the format that a model was trained with.

    Args:
        name: a run, a checkpoint or an adapter in its folder, or what was published. The template
            of any other model is taken to be learned.
        as_chat: decides instead; None for what was recorded.

    Raises:
        ConfigError: the chat template is asked for, and the tokenizer has none.
    """
    folder = Path(name).expanduser()
    recorded = _recorded_format(folder.parent if step_of(folder) >= 0 else folder, set())
    recorded = recorded or _published_format(name)
    if as_chat is False:
        plain = recorded if recorded is not None and recorded.kind == "prompt" else None
        return PromptFormat(plain.kind if plain else "document", "as asked")

    if tokenizer.chat_template is None:
        if as_chat:
            raise ConfigError(f"--as_chat: the tokenizer of {name} has no chat template")
        if recorded is not None and recorded.kind != "chat":
            return recorded
        return PromptFormat("document", "its tokenizer has no chat template")

    if as_chat:
        return PromptFormat("chat", "as asked")
    return recorded or PromptFormat("chat", "its tokenizer has a chat template")


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[dict[str, Any]] | str, kind: PromptKind
) -> list[int]:
    """Return the ids of a prompt up to its answer, as training encoded it.

    Args:
        prompt: a conversation, whose last turn of the assistant is continued, or the text of one
            turn of the user.
        kind: of the model's PromptFormat; plain kinds read texts only.

    Raises:
        DataError: the prompt is empty and the tokenizer has no token to start with, or the template
            refuses the conversation.
    """
    if kind == "chat":
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if turns and turns[-1]["role"] == "assistant":
            # the beginning of an answer, which goes on where it stops
            how: Any = {"continue_final_message": True, "return_dict": True}
            return list(render_chat(tokenizer, turns, **how)["input_ids"])
        return encode_for_generation(tokenizer, turns)

    if not isinstance(prompt, str):
        raise DataError("a prompt is a conversation, and this model reads plain text alone")
    if kind == "prompt":
        token_ids = encode_for_generation(tokenizer, prompt)
        start: int | None = cast(Any, tokenizer.bos_token_id)
        # of a text that was rendered already, the tokenizer's own bos is the second
        return token_ids[1:] if start is not None and token_ids[:2] == [start, start] else token_ids

    token_ids = list(cast(Any, tokenizer(prompt, add_special_tokens=False)["input_ids"]))
    # a text that begins with a token of its own, such as <|im_start|>, was rendered already
    rendered = token_ids[:1] and token_ids[0] in tokenizer.all_special_ids
    start = start_token_id(tokenizer) if rendered else document_start_id(tokenizer)
    if start is not None:
        return token_ids if token_ids[:1] == [start] else [start, *token_ids]
    if not token_ids:
        raise DataError(
            "a prompt is empty, and the tokenizer has no bos or eos token to start from"
        )
    return token_ids


def _recorded_format(folder: Path, seen: set[Path]) -> PromptFormat | None:
    """Return what run.json says of the format, or those of the runs behind it."""
    place = folder.resolve()
    if place in seen or not (place / RUN_FILE).is_file():
        return None
    seen.add(place)

    record = read_run(place)
    own = _own_format(record)
    if own is not None:
        return own

    # A recipe that takes its rows as they are goes on as the model before it.
    found = (_recorded_format(place / parent, seen) for parent in record.parents)
    return next((one for one in found if one is not None), None)


def _published_format(name: str) -> PromptFormat | None:
    """Return what publication.json says of the format, or None."""
    published = read_published_rendering(name)
    kind = _KIND_OF_ROWS.get(published.get("form", ""))
    if kind is None:
        return None
    recipe = published.get("recipe", "hfstack")
    return PromptFormat(kind, f"{recipe} trained it so, by its {PUBLICATION}")


def _own_format(record: RunRecord) -> PromptFormat | None:
    """Return what one run's recipe and settings say of the format, or None."""
    if form := record.rendering.get("form"):
        return PromptFormat(_KIND_OF_ROWS[form], f"{record.recipe} trained it so, by its run.json")
    if record.recipe in PRETRAINING:
        return PromptFormat("document", "it was pretrained on plain text")

    # Runs of before that was recorded say it by their settings.
    for settings in record.settings.values():
        if settings.get("as_chat") is False:
            return PromptFormat("prompt", f"{record.recipe} trained it with --as_chat false")
        if settings.get("as_chat") or settings.get("conversational"):
            return PromptFormat("chat", f"{record.recipe} trained it with its chat template")
    return None
