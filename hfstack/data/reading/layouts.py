"""Turn the rows of datasets, as they are published, into standard columns.

A layout is recognised by its keys. Questions on texts always become one row a question. What a row
of two answers or of a message tree becomes depends on the purpose: preferences, or conversations.

    SQuAD, CMRC    articles with paragraphs and qas -> id, title, context, question, answers
    hh-rlhf        chosen, rejected as "\\n\\nHuman: ... \\n\\nAssistant: ..." -> conversations
    SHP            history, human_ref_A, human_ref_B, labels -> prompt, chosen, rejected
    LLaMA-Factory  conversations, chosen, rejected as turns -> prompt, chosen, rejected
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from hfstack.data.reading.bad_rows import BadRow, Note, NumberedRow

Purpose = Literal["rows", "preferences"]
Row = dict[str, Any]

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
# ShareGPT's names of the roles
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_SHP = {"history", "human_ref_A", "human_ref_B", "labels"}


@dataclass(frozen=True)
class Layout:
    """How a published dataset is recognised, and what one of its rows becomes."""

    name: str
    matches: Callable[[Row], bool]
    convert: Callable[[Row], Iterable[Row | BadRow]]
    purpose: Purpose = "rows"  # "rows": whatever is asked for


def layout_of(row: Row, purpose: Purpose) -> Layout | None:
    """Return the layout that a dataset's first row shows, where it is converted."""
    return next(
        (one for one in _LAYOUTS if one.purpose in ("rows", purpose) and one.matches(row)), None
    )


def standard_rows(
    numbered: Iterator[NumberedRow], purpose: Purpose, note: Note
) -> Iterator[NumberedRow]:
    """Return the rows of a file, converted where the first good one shows a layout."""
    seen: list[NumberedRow] = []
    layout = None
    for one in numbered:
        seen.append(one)
        if isinstance(one[1], dict):
            layout = layout_of(one[1], purpose)
            break

    whole = chain(seen, numbered)
    if layout is None:
        return whole
    note(f"rows are read as {layout.name}")
    return _converted(whole, layout)


def _converted(numbered: Iterator[NumberedRow], layout: Layout) -> Iterator[NumberedRow]:
    for line, row, text in numbered:
        if isinstance(row, BadRow):
            yield line, row, text
        elif not layout.matches(row):
            yield line, BadRow("other layout", f"expected {layout.name}, got {list(row)}"), text
        else:
            for each in layout.convert(row):
                yield line, each, text


def _is_article(row: Row) -> bool:
    inside = row.get("paragraphs")
    paragraphs = inside if isinstance(inside, list) else [row]
    return bool(paragraphs) and all(
        isinstance(one, dict)
        and isinstance(one.get("qas"), list)
        and ("context" in one or "context_text" in one)
        for one in paragraphs
    )


def _questions(article: Row) -> Iterator[Row | BadRow]:
    """Yield the questions of an article, of SQuAD or of CMRC's own names."""
    title = str(article.get("title") or "")
    for paragraph in article.get("paragraphs", [article]):
        context = paragraph.get("context", paragraph.get("context_text"))
        for number, asked in enumerate(paragraph["qas"], 1):
            known = isinstance(asked, dict)
            question = asked.get("question", asked.get("query_text")) if known else None
            if not isinstance(question, str) or not isinstance(context, str):
                place = f"question {number} on {str(context)[:40]!r}"
                yield BadRow("no question", f"{place}: it has no text, or no text to read")
                continue

            row: Row = {"id": str(asked.get("id", asked.get("query_id", number))), "title": title}
            row |= {"context": context, "question": question}
            # published test sets have no answers; without the column nothing is trained on them
            if "answers" in asked or "is_impossible" in asked:
                if (spans := _spans(asked, context)) is None:
                    yield BadRow(
                        "answers without places",
                        f"question {number}: answers are {str(asked['answers'])[:60]!r}, not texts "
                        "with an answer_start each",
                    )
                    continue
                row["answers"] = spans
            yield row


def _spans(asked: Row, context: str) -> Row | None:
    """Return `{"text": [...], "answer_start": [...]}`; empty where nothing answers.

    None where an answer is neither a text nor a text with its place.
    """
    answers = [] if asked.get("is_impossible") else asked.get("answers") or []
    if not isinstance(answers, list):
        return None

    texts: list[str] = []
    starts: list[int] = []
    for answer in answers:
        # CMRC 2018 in its first form lists texts: the first place is meant
        one = {"text": answer, "answer_start": context.find(str(answer))}
        text, start = map((answer if isinstance(answer, dict) else one).get, one)
        start = -1 if start is None else start
        if not isinstance(text, str) or type(start) is not int:
            return None
        texts.append(text)
        starts.append(start)
    return {"text": texts, "answer_start": starts}


def _is_hh(row: Row) -> bool:
    sides = [row.get("chosen"), row.get("rejected")]
    return all(isinstance(side, str) and _HH_TURN.match(side) for side in sides)


def _hh_pair(row: Row) -> Iterator[Row | BadRow]:
    """Yield both dialogues as conversations, the beginning that they share in each."""
    yield row | {side: _dialogue(row[side]) for side in ("chosen", "rejected")}


def _dialogue(text: str) -> list[Row]:
    # ["", "Human", " a question", "Assistant", " an answer", ...]
    parts = _HH_TURN.split(text)
    return [
        {"role": _ROLES[speaker], "content": said.strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _shp_pair(row: Row) -> Iterator[Row | BadRow]:
    """Yield the pair of answers; `labels` is 1 where A was preferred, else 0."""
    if row["labels"] not in (0, 1):
        detail = f"column 'labels' must be 1 (A is better) or 0 (B), got {row['labels']!r}"
        yield BadRow("no preference", detail)
        return

    better, worse = ("A", "B") if row["labels"] else ("B", "A")
    pair = {"prompt": row["history"]}
    pair |= {"chosen": row[f"human_ref_{better}"], "rejected": row[f"human_ref_{worse}"]}
    yield pair | {name: value for name, value in row.items() if name not in _SHP}


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and {"from", "value"} <= value.keys()


def _is_turn_pair(row: Row) -> bool:
    turns = row.get("conversations")
    return (
        isinstance(turns, list)
        and all(map(_is_turn, [*turns, row.get("chosen"), row.get("rejected")]))
        and bool(turns)
    )


def _turn_pair(row: Row) -> Iterator[Row | BadRow]:
    """Yield the conversation as the prompt, and each answer as the turn after it."""
    turns: Row = {"prompt": row["conversations"], "chosen": [row["chosen"]]}
    turns["rejected"] = [row["rejected"]]
    rest = {name: value for name, value in row.items() if name not in (*turns, "conversations")}
    yield {name: [_standard_turn(turn) for turn in value] for name, value in turns.items()} | rest


def _standard_turn(turn: Row) -> Row:
    return {"role": _SHAREGPT_ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}


_LAYOUTS = (
    Layout("questions on texts, as in SQuAD", _is_article, _questions),
    Layout("dialogues of Human and Assistant, as in hh-rlhf", _is_hh, _hh_pair, "preferences"),
    Layout("answers A and B, as in SHP", lambda row: row.keys() >= _SHP, _shp_pair, "preferences"),
    Layout("a conversation with two answers", _is_turn_pair, _turn_pair, "preferences"),
)
