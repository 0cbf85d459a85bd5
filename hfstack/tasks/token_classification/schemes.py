"""Read which scheme tags are written in, and find their entities by its rules.

BIO tags (IOB1, IOB2) and IOE tags are read as conlleval and seqeval's default do: an entity begins
where its type changes, too. Schemes that mark the last word of an entity are read strictly, as
seqeval does in its mode "strict": an entity without its begin or its end is none.
"""

import re
from collections.abc import Sequence
from typing import Literal

from hfstack.errors import DataError

Scheme = Literal["BIO", "IOE", "IOBES", "BILOU", "BMES", "BMEW"]
Entity = tuple[str, int, int]
"""Type, first word, last word."""

# begin, inside, end, and an entity of one word; BMES is how Chinese data write IOBES
_WHOLE_MARKS: dict[Scheme, str] = {
    "IOBES": "BIES",
    "BILOU": "BILU",
    "BMES": "BMES",
    "BMEW": "BMEW",
}
_ENTITY_TAG = re.compile(r"[BIESLUMW]-.+")


def read_scheme(names: Sequence[str]) -> Scheme | None:
    """Return the scheme of a set of tags, or None where they mark no entities.

    Raises:
        DataError: they mark entities, in no scheme that is known.
    """
    marked = [name for name in names if name != "O"]
    if not marked or not all(_ENTITY_TAG.fullmatch(name) for name in marked):
        return None

    prefixes = {name[0] for name in marked}
    if prefixes <= set("BI"):
        return "BIO"
    if prefixes <= set("IE"):
        return "IOE"

    for scheme, (begin, inside, end, single) in _WHOLE_MARKS.items():
        # Without a begin or an end no entity of several words could be whole.
        several = prefixes & {begin, inside, end}
        if prefixes <= {begin, inside, end, single} and (not several or {begin, end} <= several):
            return scheme

    shown = ", ".join(f"{prefix}-" for prefix in sorted(prefixes))
    raise DataError(
        f"the tags begin with {shown}, which is none of the schemes that can be scored (BIO with "
        "B- I-, IOE with I- E-, IOBES with B- I- E- S-, BILOU with B- I- L- U-, BMES with B- M- E- "
        "S-); write all tags in one of them"
    )


def is_entity_scheme(names: Sequence[str]) -> bool:
    """Return whether tags mark the begin and inside of entities (B-person, I-person)."""
    return "O" in names and read_scheme(names) is not None


def entities(tags: Sequence[str], scheme: Scheme = "BIO") -> list[Entity]:
    """Return the entities of a row of tags by the rules of their scheme."""
    if scheme in _WHOLE_MARKS:
        return _whole_entities(tags, _WHOLE_MARKS[scheme])
    return entities_by_type(tags)


def entities_by_type(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of a row of tags as conlleval reads them.

    An I- without its B- begins one.
    """
    found: list[Entity] = []
    kind, begin = None, 0

    for index, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        before = tags[index - 1].partition("-")[0] if index else "O"
        begins = prefix in "BSUW" or own != (kind or "") or before in ("E", "S", "L", "U", "W")
        if kind is not None and (prefix == "O" or begins):
            found.append((kind, begin, index - 1))
            kind = None
        if prefix != "O" and kind is None:
            kind, begin = own, index

    return found


def rewrite_entities(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """Return tags whose every entity, as conlleval reads them, is whole in its scheme."""
    begin, inside, end, single = _WHOLE_MARKS.get(scheme, "BIIB" if scheme == "BIO" else "IIEE")
    written = ["O"] * len(tags)

    for kind, first, last in entities_by_type(tags):
        marks = single if first == last else begin + inside * (last - first - 1) + end
        written[first : last + 1] = [f"{mark}-{kind}" for mark in marks]

    return written


def as_seqeval(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """Return tags in the letters that seqeval knows: BMES and BMEW as IOBES."""
    if scheme not in ("BMES", "BMEW"):
        return list(tags)
    letters = {"M": "I", "W": "S"}
    return [tag if tag == "O" else f"{letters.get(tag[0], tag[0])}{tag[1:]}" for tag in tags]


def seqeval_scheme(scheme: Scheme) -> str | None:
    """Return what seqeval calls a scheme that is scored strictly, else None."""
    return {"IOBES": "IOBES", "BILOU": "BILOU", "BMES": "IOBES", "BMEW": "IOBES"}.get(scheme)


def _whole_entities(tags: Sequence[str], marks: str) -> list[Entity]:
    begin, inside, end, single = marks
    found: list[Entity] = []
    kind, first = None, 0

    for index, tag in enumerate(tags):
        prefix, _, own = tag.partition("-")
        if prefix == single:
            found.append((own, index, index))
            kind = None
        elif prefix == begin:
            kind, first = own, index
        elif prefix not in (inside, end) or own != kind:
            kind = None
        elif prefix == end:
            found.append((own, first, index))
            kind = None

    return found
