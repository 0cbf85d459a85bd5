"""A conversation through a chat template, which is a program of somebody else and may fail."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hfstack.errors import DataError


def render_chat(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, Any]], **options: Any) -> Any:
    """Return what `apply_chat_template` makes of a conversation.

    Args:
        options: of `apply_chat_template`.

    Raises:
        DataError: the template refuses the turns or is not one; in one line, with its reason and the turns' beginning.
    """
    try:
        return tokenizer.apply_chat_template(list(turns), **options)
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"the chat template fails: {reason} (on {str(list(turns))[:120]}); mend the turns or the tokenizer's "
            "chat_template.jinja, or give it another template"
        ) from error
