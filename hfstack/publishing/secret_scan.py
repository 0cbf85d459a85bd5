"""Find secrets in what is about to be published.

They are found by their shape in texts, and by their value in every file.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub import get_token

from hfstack.errors import ConfigError
from hfstack.publishing.files import Item

# Keys that can be recognised. A word such as `password` is none: datasets are scanned as well.
_SHAPES = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}\b",
    "an OpenAI-style key": r"\bsk-(?:[A-Za-z0-9]+-)?[A-Za-z0-9_]{20,}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})\b",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}\b",
    "an AWS access key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google API key": r"\bAIza[A-Za-z0-9_-]{35}\b",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
_PATTERNS = {what: re.compile(shape.encode()) for what, shape in _SHAPES.items()}
_NAMES_A_SECRET = re.compile(r"(?i)(?:token|api_?key|secret|password|passwd|credential)s?$")
_SHORTEST = 8  # characters; shorter values turn up by chance
_SCAN_BYTES = 1 << 20
_OVERLAP_BYTES = 1 << 10


def known_secrets(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the secrets of this process: value to name.

    They are what its environment names as one, and the saved token of the Hub.
    """
    found = {
        value: name
        for name, value in environment.items()
        if _NAMES_A_SECRET.search(name) and len(value) >= _SHORTEST and not Path(value).exists()
    }
    if (token := get_token()) and len(token) >= _SHORTEST and token not in found:
        found[token] = "the Hub token of this machine"
    return found


def hide_known(text: str, secrets: Iterable[str]) -> str:
    """Return the text without these values."""
    for secret in secrets:
        text = text.replace(secret, "<redacted>")
    return text


def find_secret(path: Path, secrets: Mapping[str, str]) -> str | None:
    """Say which secret a file holds, without repeating it, or return None.

    Args:
        secrets: value to name, as from `known_secrets`; looked for in every file, shapes in those
            that are text.
    """
    values = {value.encode(): name for value, name in secrets.items()}
    before, is_text = b"", None
    with path.open("rb") as stream:
        while chunk := stream.read(_SCAN_BYTES):
            if is_text is None:
                is_text = b"\0" not in chunk

            # A secret may begin in the chunk before.
            window = before + chunk
            for value, name in values.items():
                if value in window:
                    return f"the value of {name}"
            if is_text:
                for what, pattern in _PATTERNS.items():
                    if pattern.search(window):
                        return what

            before = window[-_OVERLAP_BYTES:]
    return None


def refuse_secrets(items: Iterable[Item], secrets: Mapping[str, str]) -> int:
    """Scan every file that is to be published, and return how many there were.

    Raises:
        ConfigError: one holds a secret; the message names the file and the kind, never the secret.
    """
    scanned = list(items)
    for one in scanned:
        if (found := find_secret(one.source, secrets)) is not None:
            raise ConfigError(
                f"{one.source} holds {found}: nothing was pushed; remove it, and revoke it if "
                "anybody has seen it"
            )
    return len(scanned)
