"""Read what only a person can say about a model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from hfstack.errors import ConfigError

_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z]+)?|code|multilingual")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class AuthorFacts:
    """What only the author of a model knows; the card calls what is left out missing.

    Args:
        licence: a licence id of the Hub such as `apache-2.0`.
        language: ISO 639 codes.
        intended_use: replaces the sentence that fits the kind of model.
        limits: further limits, in sentences.
        data_licences: licence by the end of a data path, such as `corpus/raw.jsonl`.

    Raises:
        ConfigError: the licence or a language is none that the Hub takes.
    """

    licence: str | None = None
    language: list[str] = field(default_factory=list)
    intended_use: str | None = None
    limits: list[str] = field(default_factory=list)
    data_licences: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.licence is not None and not _LICENCE.fullmatch(self.licence):
            raise ConfigError(
                f"--license {self.licence}: give its id on the Hub, such as apache-2.0 or cc-by-4.0"
            )
        for language in self.language:
            if not _LANGUAGE.fullmatch(language):
                raise ConfigError(
                    f"--language {language}: give an ISO 639 code such as en, or multilingual"
                )


def parse_data_licences(entries: Sequence[str]) -> dict[str, str]:
    """Return `path=licence` entries as a mapping.

    Raises:
        ConfigError: one has no path or no licence.
    """
    found = {}
    for entry in entries:
        path, _, licence = entry.rpartition("=")
        if not path or not licence:
            raise ConfigError(
                f"--data_licenses {entry}: write path=licence, such as raw.jsonl=cc-by-4.0"
            )
        found[path] = licence
    return found
