"""Drop settings of a YAML file that belong to a value when another is named.

    settings_of:
      datasets: [eval_datasets, source_prefix]

With `--datasets mine.jsonl` on the command line, the two settings of this YAML fall back to their
defaults: they describe the data that the file names, and would train on the user's in silence.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hfstack import bounded_yaml
from hfstack.errors import ConfigError
from hfstack.logs import get_logger

KEY = "settings_of"

logger = get_logger(__name__)


def settings_to_drop(
    root: yaml.MappingNode, place: str, known: Collection[str], flags: Sequence[str]
) -> dict[str, str]:
    """Return the settings of a YAML file that do not apply, and the flag of each.

    Args:
        root: the file's mapping.
        place: the file's path, for messages.
        known: the recipe's options.
        flags: the command line. A flag that gives what the file gives drops nothing.

    Raises:
        ConfigError: `settings_of` is no mapping of an option to a list of options of the file.
    """
    values = {str(key.value): (key, value) for key, value in root.value}
    if KEY not in values:
        return {}

    key_node, node = values[KEY]
    place = f"{place}:{key_node.start_mark.line + 1}: "
    belonging = bounded_yaml.construct(node, f"{place}{KEY}") or {}
    if not isinstance(belonging, dict) or not all(
        isinstance(names, list) for names in belonging.values()
    ):
        raise ConfigError(
            f"{place}{KEY} maps an option to the list of settings that belong to its value, such "
            f"as `datasets: [eval_datasets]`, got {belonging!r}"
        )

    for option, names in belonging.items():
        if wrong := [str(name) for name in (option, *names) if name not in known]:
            raise ConfigError(f"{place}{KEY} names {wrong[0]!r}, which is no option of this recipe")

    named = values_of_flags(flags)
    dropped: dict[str, str] = {}
    for option, names in belonging.items():
        own = []
        if option in values:
            own = bounded_yaml.construct(values[option][1], f"{place}{option}")
        if option in named and _is_other(option, named[option], own):
            dropped |= {name: option for name in names if name in values and name not in named}

    return dropped


def log_dropped(dropped: Mapping[str, str], path: Path) -> None:
    """Say which settings of the YAML file were left out, one line a flag."""
    for option in dict.fromkeys(dropped.values()):
        names = [name for name, because in dropped.items() if because == option]
        logger.info(
            "left out of %s, because they belong to its own %s: %s",
            path.name,
            option,
            ", ".join(names),
        )


def values_of_flags(flags: Sequence[str]) -> dict[str, list[str]]:
    """Return what the command line gives to each option, as words."""
    named: dict[str, list[str]] = {}
    option = ""
    for word in flags:
        # as argparse has it, a blank before any = is of a value, such as --recipe_options "--a 1"
        if word.startswith("--") and " " not in word.partition("=")[0]:
            option, equals, value = word[2:].partition("=")
            option = option.replace("-", "_")
            named[option] = [value] if equals else []
        elif option:
            named[option].append(word)

    return named


def _is_other(option: str, given: list[str], own: Any) -> bool:
    """Return whether a flag names something else than the YAML file does."""
    # An architecture has no tokenizer of its own, as a checkpoint has.
    if option == "model_name_or_path" and given and given[0].endswith(".json"):
        return False

    own = own if isinstance(own, list) else [own]
    return given != [str(one.get("path") if isinstance(one, dict) else one) for one in own]
