"""Generate a raw corpus with planted noise, and keep the truth beside each row.

Some rows are duplicated or damaged on purpose.

Cleaning is judged against the truth: rows with a fault in DROPPED should go, rows with one in
REPAIRED should stay, with the damage repaired or masked, and every other row should stay as it is.
"""

import random
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from hfstack.demo.stories import story

DROPPED = ("exact_duplicate", "near_duplicate", "too_short", "symbol_soup", "repeated_lines")
REPAIRED = ("mojibake", "html", "control_characters", "boilerplate", "personal_data")
FAULTS = DROPPED + REPAIRED

_SWAPS = {
    "little": "small",
    "small": "little",
    "very": "quite",
    "big": "large",
    "old": "aged",
    "cried": "wept",
    "said": "spoke",
    "home": "back",
    "the": "that",
    "a": "one",
    "was": "is",
    "and": "then",
    "had": "got",
    "so": "thus",
}

# what pages have that is none of their text
_COOKIE_NOTICES = (
    "This website uses cookies to improve your experience. Accept all | Settings",
    "We value your privacy. By continuing to browse you agree to our use of cookies.",
    "Share on Facebook | Tweet | Pin it | Print this page",
    "Copyright 2019 Storytime Online. All rights reserved.",
    "Subscribe to our newsletter and never miss a story!",
)
_CONTROL_CHARACTERS = "\x00\x07\x08\x0b\x1b\x7f\x9d\ufeff\u200b"
_SHORT_TEXTS = (
    "The end.",
    "Read more",
    "404",
    "Chapter 1",
    "ok",
    "to be continued",
    "next page",
    "Untitled",
)
_SYMBOLS = "#$%&*+/<=>@^_|~{}[];:0123456789"


def noisy_corpus(seed: int, count: int, *, share: float = 0.15) -> Iterator[dict[str, Any]]:
    """Yield rows {"id", "text", "planted", "source"}; `planted` is a problem or None.

    Args:
        seed: of the corpus; row n is the same whatever the count.
        count: number of rows, faulty ones included.
        share: of the rows that carry a fault, in [0, 1]; each fault is as likely as any other.

    `source` is the id of the row that a duplicate repeats, None for other rows.
    """
    for index in range(count):
        fault = planted_fault(seed, index, share)
        uniform = random.Random(f"damage/{seed}/{index}")
        origin = None

        if fault in ("exact_duplicate", "near_duplicate"):
            origin = _clean_row_before(seed, index, share, uniform)
        text = story(seed, index if origin is None else origin).text

        if fault in _DAMAGE:
            text = _DAMAGE[fault](text, uniform)

        yield {
            "id": _row_id(index),
            "text": text,
            "planted": fault,
            "source": None if origin is None else _row_id(origin),
        }


def planted_fault(seed: int, index: int, share: float) -> str | None:
    """Return the fault of row `index`, or None.

    The first row is always clean, so that duplicates have a source.
    """
    uniform = random.Random(f"fault/{seed}/{index}").random
    return FAULTS[int(uniform() * len(FAULTS))] if uniform() < share and index else None


def score_cleaning(rows: Iterable[dict[str, Any]], kept_ids: Collection[str]) -> dict[str, float]:
    """Compare what a cleaner kept with the truth.

    Args:
        rows: rows with "id" and "planted", as noisy_corpus yields them.
        kept_ids: ids of the rows that the cleaner kept.

    Returns:
        recall_<fault> for each fault of DROPPED that occurs (share of such rows that were dropped),
        their mean as "recall", "precision" (share of dropped rows that should go), and "kept_good"
        (share of good rows kept).
    """
    kept = set(kept_ids)
    seen: dict[str | None, int] = {}
    gone: dict[str | None, int] = {}

    for row in rows:
        fault = row["planted"]
        seen[fault] = seen.get(fault, 0) + 1
        gone[fault] = gone.get(fault, 0) + (row["id"] not in kept)

    recalls = {f"recall_{fault}": gone[fault] / seen[fault] for fault in DROPPED if fault in seen}
    rightly = sum(gone.get(fault, 0) for fault in DROPPED)
    good = [fault for fault in seen if fault not in DROPPED]
    good_count = sum(seen[fault] for fault in good)

    return {
        **recalls,
        "recall": sum(recalls.values()) / len(recalls) if recalls else 1.0,
        "precision": rightly / sum(gone.values()) if sum(gone.values()) else 1.0,
        "kept_good": 1 - sum(gone[fault] for fault in good) / good_count if good_count else 1.0,
    }


def _row_id(index: int) -> str:
    return f"demo-{index:07d}"


def _clean_row_before(seed: int, index: int, share: float, uniform: random.Random) -> int:
    """Return the number of an earlier row without a fault; row 0 is always one."""
    for _ in range(50):
        candidate = uniform.randrange(index)
        if planted_fault(seed, candidate, share) is None:
            return candidate
    return 0


def _nearly_the_same(text: str, uniform: random.Random) -> str:
    """Change two words, near each other, so that most 5-word runs stay."""
    words = text.split(" ")
    start = uniform.randrange(len(words) - 8)

    candidates = [position for position in range(start, len(words)) if words[position] in _SWAPS][
        :2
    ]
    for position in candidates:
        words[position] = _SWAPS[words[position]]

    if len(candidates) < 2:
        del words[start]
    return " ".join(words)


def _mojibake(text: str, _: random.Random) -> str:
    """Damage quotes, dashes and accents: UTF-8 opened as Windows-1252."""
    pieces = text.split('"')
    text = (
        "".join(
            piece + ("“" if number % 2 == 0 else "”") for number, piece in enumerate(pieces[:-1])
        )
        + pieces[-1]
    )

    text = (
        text.replace("'", "’").replace(", ", " — ", 1).replace("Zoe", "Zoé").replace("Anna", "Ánna")
    )
    garbled = []

    for byte in text.encode("utf-8"):
        try:
            garbled.append(bytes([byte]).decode("cp1252"))
        except (
            UnicodeDecodeError
        ):  # five bytes mean nothing in cp1252; browsers keep them as control characters
            garbled.append(chr(byte))

    return "".join(garbled)


def _html(text: str, uniform: random.Random) -> str:
    sentences = text.split(". ")
    middle = uniform.randrange(1, len(sentences))
    text = ".&nbsp;".join((". ".join(sentences[:middle]), ". ".join(sentences[middle:])))
    text = text.replace('"', "&quot;").replace(" and ", " <em>and</em> ", 1)

    return uniform.choice(
        (
            f'<div class="story-body"><p>{text}</p></div>',
            f"<p>{text}</p>\n<script>track('view', {uniform.randrange(10**6)});</script>",
            f'<span style="font-size:{uniform.randrange(9, 20)}px">{text}</span>',
        )
    )


def _control_characters(text: str, uniform: random.Random) -> str:
    letters = list(text)
    for _ in range(6):
        letters.insert(uniform.randrange(len(letters)), uniform.choice(_CONTROL_CHARACTERS))
    return "".join(letters)


def _boilerplate(text: str, uniform: random.Random) -> str:
    before, after = uniform.sample(_COOKIE_NOTICES, 2)
    return f"{before}\n\n{text}\n\n{after}"


def _personal_data(text: str, uniform: random.Random) -> str:
    name = uniform.choice(("mia.stone", "otto_k", "ruby77", "the.editor", "hello"))
    number = (
        f"({uniform.randrange(200, 990)}) "
        f"{uniform.randrange(200, 990)}-{uniform.randrange(1000, 9999)}"
    )
    address = ".".join(str(uniform.randrange(1, 255)) for _ in range(4))
    tail = uniform.choice(
        (
            f"Questions? Write to {name}@story-mail.example.com.",
            f"To order the book, call {number} before noon.",
            f"Posted from {address} by a reader.",
        )
    )

    return f"{text} {tail}"


def _too_short(_: str, uniform: random.Random) -> str:
    return uniform.choice(_SHORT_TEXTS)


def _symbol_soup(text: str, uniform: random.Random) -> str:
    return " ".join(
        "".join(uniform.choice(_SYMBOLS) for _ in range(uniform.randrange(1, 9)))
        if uniform.random() < 0.7
        else word
        for word in text.split(" ")
    )


def _repeated_lines(text: str, uniform: random.Random) -> str:
    line = uniform.choice(text.split(". ")) + "."
    return "\n".join([line] * uniform.randrange(12, 30))


_DAMAGE: dict[str | None, Callable[[str, random.Random], str]] = {
    "near_duplicate": _nearly_the_same,
    "mojibake": _mojibake,
    "html": _html,
    "control_characters": _control_characters,
    "boilerplate": _boilerplate,
    "personal_data": _personal_data,
    "too_short": _too_short,
    "symbol_soup": _symbol_soup,
    "repeated_lines": _repeated_lines,
}
