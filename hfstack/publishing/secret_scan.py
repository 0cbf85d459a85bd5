"""Find secrets in what is about to be published.

They are found by their shape in texts (secret_rules.py), and by their value in every file.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub import get_token

from hfstack.errors import ConfigError
from hfstack.publishing.files import FileToPublish
from hfstack.secret_rules import SHORTEST_VALUE, find_secrets, secrets_of_environment

_SCAN_BYTES = 1 << 20
_OVERLAP_BYTES = 1 << 13  # longer than any secret that is known by its shape


def known_secrets(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the secrets of this process: value to name.

    They are what its environment names as one, and the saved token of the Hub.
    """
    found = secrets_of_environment(environment)
    if (token := get_token()) and len(token) >= SHORTEST_VALUE and token not in found:
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
            if is_text and (found := next(find_secrets(window, certain=True), None)):
                return found.what

            before = window[-_OVERLAP_BYTES:]
    return None


def refuse_secrets(items: Iterable[FileToPublish], secrets: Mapping[str, str]) -> int:
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
