"""Keep secrets out of run records, logs, errors and cards.

Standard library only. What a secret is, secret_rules.py knows.
"""

import os
from typing import Any

from hfstack.secret_rules import hide_secrets, secrets_of_environment


def redact(text: str) -> str:
    """Return the text with tokens and passwords replaced by `<redacted>`.

    The word that names one stays.
    """
    return hide_secrets(text, secrets_of_environment(os.environ))


def redact_values(value: Any) -> Any:
    """Return nested dicts and lists with their strings redacted.

    Everything else is as it was.
    """
    return _redact_values(value, secrets_of_environment(os.environ))


def _redact_values(value: Any, known: dict[str, str]) -> Any:
    if isinstance(value, str):
        return hide_secrets(value, known)
    if isinstance(value, dict):
        return {name: _redact_entry(name, entry, known) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_redact_values(entry, known) for entry in value]
    return value


def _redact_entry(name: Any, entry: Any, known: dict[str, str]) -> Any:
    """Redact one value of a mapping, whose name may say that it is a secret."""
    redacted = _redact_values(entry, known)
    if not isinstance(redacted, str) or not isinstance(name, str):
        return redacted

    # As the rules read it on a line: what they would hide there is hidden here.
    flat = " ".join(redacted.split()).replace('"', "'")
    return (
        "<redacted>" if hide_secrets(f'"{name}": "{flat}"').endswith('"<redacted>"') else redacted
    )
