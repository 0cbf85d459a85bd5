"""JSON values that no reader expects, and JSON documents with one of them inside."""

import copy
import random
from typing import Any

ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 3, 1.5, 10**18, 10**30, 1e308, float("inf"), float("nan")),
    *("", " ", "4", "1.0", "nan", "text", "\0", "a\nb", "\ud800", "<b>", "../../x", "é" * 300),
    *([], [None], [3], [""], [[]], [{}], ["a", None], [[[["deep"]]]], list(range(300))),
    *({}, {"": 1}, {"a": None}, {"path": 3}, {"role": 3, "content": None}, {"a": {"b": {"c": []}}}),
    {"role": "user", "content": "hello"},
    [{"role": "user", "content": None}],
    [{"role": "nobody", "content": ["x"]}],
]


def mutated(document: Any, seed: int) -> Any:
    """Return a copy with one to three places changed: replaced, deleted, doubled or renamed."""
    choose = random.Random(seed)
    changed = copy.deepcopy(document)
    for _ in range(choose.choice((1, 1, 2, 3))):
        places = list(_places(changed))
        if not places:
            return choose.choice(ODD_VALUES)
        parent, key = choose.choice(places)
        match choose.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[f"{key}_"] = parent.pop(key)
            case 2 if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(parent[key]))
            case 3:
                parent[key] = [copy.deepcopy(parent[key])]
            case _:
                parent[key] = copy.deepcopy(choose.choice(ODD_VALUES))
    return changed


def damaged(content: bytes, seed: int) -> bytes:
    """Return bytes that were flipped, cut, doubled or inserted at one to four places."""
    choose, data = random.Random(seed), bytearray(content)
    for _ in range(choose.randint(1, 4)):
        at = choose.randrange(len(data) + 1)
        match choose.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << choose.randrange(8)
            case 1:
                del data[at : at + choose.choice((1, 2, 20, 10_000))]
            case 2:
                data[at:at] = data[at : at + choose.choice((1, 30, 400))]
            case 3:
                data[at:at] = choose.choice(_INSERTED)
            case _:
                data[at:at] = choose.randbytes(choose.choice((1, 4, 16)))
    return bytes(data)


_INSERTED = (
    *(
        b"\0",
        b"\n",
        b"\r\n",
        b'"',
        b"{",
        b"}",
        b"[" * 2000,
        b",",
        b"\t",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
    ),
    *(b"\\ud800", b"NaN", b"1e999", b"9" * 400, b"null", b'"a": 1, ', b"\x1f\x8b", b"PK\x03\x04"),
)


def _places(value: Any) -> Any:
    """Yield each place inside a JSON value as its parent and key."""
    if isinstance(value, dict):
        for key, inside in list(value.items()):
            yield value, key
            yield from _places(inside)
    elif isinstance(value, list):
        for at, inside in enumerate(list(value)):
            yield value, at
            yield from _places(inside)
