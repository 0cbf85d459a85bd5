"""Keep secrets out of run records, logs and cards.

Standard library only.
"""

import re
from typing import Any

_REPLACEMENT = "<redacted>"
# Hub and OpenAI-style keys by their shape; and whatever follows an option or a word that names a
# secret, quoted or not.
_SECRETS = re.compile(
    r"""\bhf_[A-Za-z0-9]{8,}|\bsk-[A-Za-z0-9_-]{16,}"""
    r"""|(?i:(?:\bhub[-_]token|\bpassword|\bapi[-_]key|\bsecret)(?:\s*[=:]\s*|\s+))"""
    r"""(?:"[^"]*"|'[^']*'|[^\s'"]+)"""
)
_NAME = re.compile(r"(?i)^(?:hub[-_]token|password|api[-_]key|secret)(?:\s*[=:]\s*|\s+)")


def redact(text: str) -> str:
    """Return the text with tokens and passwords replaced by `<redacted>`.

    The word that names one stays.
    """

    def replace(match: re.Match[str]) -> str:
        name = _NAME.match(match.group())
        return (name.group() if name else "") + _REPLACEMENT

    return _SECRETS.sub(replace, text)


def redact_values(value: Any) -> Any:
    """Return nested dicts and lists with their strings redacted.

    Everything else is as it was.
    """
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {name: redact_values(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(entry) for entry in value]
    return value
