"""Read YAML whose size, depth and values are bounded.

A file of settings needs names, numbers, texts, lists and mappings. What YAML has beside them can
build much out of little: 437 bytes of aliases stand for more objects than a machine holds.
"""

from datetime import date
from typing import Any

import yaml

from hfstack.errors import ConfigError

MOST_CHARACTERS = 1 << 18
MOST_DEPTH = 16


def compose(text: str) -> yaml.Node | None:
    """Return the nodes of a YAML document, None for an empty one.

    Raises:
        yaml.MarkedYAMLError: it is not YAML, or has what settings do not need: aliases of lists or
            mappings, tags, keys that are no text or stand there twice, characters that are no
            text, or more than 256 Ki characters or 16 levels.
    """
    if len(text) > MOST_CHARACTERS:
        raise yaml.MarkedYAMLError(problem=f"more than {MOST_CHARACTERS} characters of settings")
    return yaml.compose(text, Loader=_BoundedLoader)


def construct(node: yaml.Node, place: str) -> Any:
    """Return the value of a node: what JSON has as well, and infinite numbers.

    Args:
        node: of `compose`.
        place: what a message begins with.

    Raises:
        ConfigError: it cannot be read, or is a date.
    """
    try:
        value = yaml.SafeLoader("").construct_document(node)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError(f"{place} cannot be read: {' '.join(str(error).split())[:120]}") from None
    _refuse_other_values(value, place)
    return value


class _BoundedLoader(yaml.SafeLoader):
    """Composes nodes, and refuses what can grow."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise _refusal(event, f"the tag {event.tag} is not read here")

        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise _refusal(event, f"more than {MOST_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1

        if isinstance(event, yaml.AliasEvent) and not isinstance(node, yaml.ScalarNode):
            raise _refusal(event, f"the alias *{event.anchor} of a list or mapping is not read")
        if isinstance(node, yaml.ScalarNode):
            _refuse_no_text(node)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal(key, "a key is a name, not a list or a mapping")
            # Of the outermost mapping, the reader of options says it with both lines.
            if key.value in seen and self.depth > 1:
                raise _refusal(key, f"the key {key.value[:40]!r} occurs twice")
            seen.add(key.value)
        return node


def _refuse_no_text(node: yaml.ScalarNode) -> None:
    """Refuse characters that no file and no path can hold."""
    if "\0" in node.value:
        raise _refusal(node, "a text with the character NUL")
    try:
        node.value.encode()
    except UnicodeEncodeError:
        raise _refusal(node, "half of a surrogate pair, which no UTF-8 text can hold") from None


def _refusal(at: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _refuse_other_values(value: Any, place: str) -> None:
    """Raise ConfigError for what has no form on a command line, such as a date."""
    if isinstance(value, date):
        raise ConfigError(f"{place} is read as a date, {value}: put it in quotes")
    if isinstance(value, int) and abs(value) >= 1 << 64:
        raise ConfigError(f"{place} is an integer of more than 64 bits")
    if isinstance(value, dict):
        for name, entry in value.items():
            _refuse_other_values(name, place)
            _refuse_other_values(entry, place)
    elif isinstance(value, list):
        for entry in value:
            _refuse_other_values(entry, place)
