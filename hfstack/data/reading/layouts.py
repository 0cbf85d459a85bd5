"""Turn the rows of datasets, as they are published, into standard columns.

A layout is recognised by its keys. Questions on texts always become one row a question. Rows of two
answers and trees of messages become what is asked for: preferences, or conversations.

    SQuAD, CMRC    articles with paragraphs and qas -> id, title, context, question, answers
    hh-rlhf        chosen, rejected as "\\n\\nHuman: ... \\n\\nAssistant: ..." -> conversations
    SHP            history, human_ref_A, human_ref_B, labels -> prompt, chosen, rejected
    LLaMA-Factory  conversations, chosen, rejected as turns -> prompt, chosen, rejected
                   conversations, kto_tag -> prompt, completion, label
                   instruction, input, history and answers as text -> the same
    OpenAssistant  message_id, parent_id, text, rank; or trees with replies -> messages, or prompt,
                   completions, ranks
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from hfstack.data.reading.bad_rows import BadRow, Note, NumberedRow
from hfstack.data.reading.message_trees import (
    Row,
    best_conversation,
    gather_trees,
    is_message,
    is_tree,
    ranked_answers,
)
from hfstack.tokens.turns import TEXT_PARTS

Purpose = Literal["rows", "conversations", "preferences"]
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
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
    # makes the rows to convert of those of the file, where one of them is spread over several
    gather: Callable[[Iterator[NumberedRow]], Iterator[NumberedRow]] | None = None


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
    if purpose != "rows":
        whole = _with_joined_parts(whole)
    if layout is None:
        return whole
    note(f"rows are read as {layout.name}")
    return _converted(whole, layout, note)


def _with_joined_parts(numbered: Iterator[NumberedRow]) -> Iterator[NumberedRow]:
    """Join contents that are parts of text, so that all turns are alike.

    Files often have both, the user's in parts and the assistant's plain; a column of Arrow has one.
    """
    for line, row, text in numbered:
        if isinstance(row, dict):
            for name, turns in row.items():
                if isinstance(turns, list) and any(map(_is_in_parts, turns)):
                    row = row | {name: [_with_joined_content(turn) for turn in turns]}
        yield line, row, text


def _is_in_parts(turn: Any) -> bool:
    """Return whether the content of a turn is parts of text, and nothing else."""
    parts = turn.get("content") if isinstance(turn, dict) else None
    return isinstance(parts, list) and bool(parts) and all(map(_is_text_part, parts))


def _is_text_part(part: Any) -> bool:
    is_part = isinstance(part, dict) and {"type", "text"} == part.keys()
    return is_part and part["type"] in TEXT_PARTS and isinstance(part["text"], str)


def _with_joined_content(turn: Any) -> Any:
    if not _is_in_parts(turn):
        return turn
    return turn | {"content": "".join(part["text"] for part in turn["content"])}


def _converted(
    numbered: Iterator[NumberedRow], layout: Layout, note: Note
) -> Iterator[NumberedRow]:
    found, without = 0, 0
    for line, row, text in numbered if layout.gather is None else layout.gather(numbered):
        if isinstance(row, BadRow):
            yield line, row, text
        elif layout.gather is None and not layout.matches(row):
            yield line, BadRow("other layout", f"expected {layout.name}, got {list(row)}"), text
        else:
            rows = list(layout.convert(row))
            found, without = found + len(rows), without + (not rows)
            for each in rows:
                yield line, each, text

    if without and not found:
        yield 1, BadRow("nothing in it", f"none of the {without} rows has what is asked for"), None
    elif without:
        note(f"{without} of them have nothing of that")


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
        {"role": _HH_ROLES[speaker], "content": said.strip()}
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
    yield pair | _rest(row, *_SHP)


def _is_turn(value: Any) -> bool:
    keys = value.keys() if isinstance(value, dict) else set()
    return {"from", "value"} <= keys or {"role", "content"} <= keys


def _turns_of(row: Row) -> list[Row]:
    """Return the conversation of a row, none where it has no such column."""
    turns = row.get("conversations", row.get("messages"))
    return turns if isinstance(turns, list) and all(map(_is_turn, turns)) else []


def _is_turn_pair(row: Row) -> bool:
    return bool(_turns_of(row)) and _is_turn(row.get("chosen")) and _is_turn(row.get("rejected"))


def _turn_pair(row: Row) -> Iterator[Row | BadRow]:
    """Yield the conversation as the prompt, and each answer as the turn after it."""
    pair = {"prompt": _turns_of(row), "chosen": [row["chosen"]], "rejected": [row["rejected"]]}
    yield _standard_turns(pair) | _rest(row, *pair, "conversations", "messages")


def _is_tagged(row: Row) -> bool:
    tag = row.get("kto_tag", row.get("label"))
    return bool(_turns_of(row)) and isinstance(tag, bool) and "prompt" not in row


def _tagged_answer(row: Row) -> Iterator[Row | BadRow]:
    """Yield the last turn as the answer, with its thumb."""
    turns = _turns_of(row)
    parts = _standard_turns({"prompt": turns[:-1], "completion": turns[-1:]})
    if parts["completion"][0]["role"] != "assistant":
        yield BadRow("no answer", "the last turn of a conversation with a thumb must answer")
        return
    thumb = {"label": row.get("kto_tag", row.get("label"))}
    yield parts | thumb | _rest(row, "conversations", "messages", "kto_tag", "label")


def _standard_turns(parts: dict[str, list[Row]]) -> Row:
    return {name: [_standard_turn(turn) for turn in turns] for name, turns in parts.items()}


def _standard_turn(turn: Row) -> Row:
    """Return a turn with `role` and `content`; other keys stay beside them."""
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    named = {"role": _SHAREGPT_ROLES.get(str(role), role), "content": content}
    return named | _rest(turn, "role", "from", "content", "value")


def _is_alpaca(row: Row, *answers: str) -> bool:
    return all(isinstance(row.get(name), str) for name in ("instruction", *answers))


def _is_alpaca_pair(row: Row) -> bool:
    return _is_alpaca(row, "chosen", "rejected") and "prompt" not in row


def _is_alpaca_tagged(row: Row) -> bool:
    return _is_alpaca(row, "output") and isinstance(row.get("kto_tag"), bool)


def _alpaca_pair(row: Row) -> Iterator[Row | BadRow]:
    yield {"prompt": _alpaca_prompt(row)} | _rest(row, "instruction", "input", "query", "history")


def _alpaca_tagged(row: Row) -> Iterator[Row | BadRow]:
    answer = {"completion": row["output"], "label": row["kto_tag"]}
    rest = _rest(row, "instruction", "input", "query", "history", "output", "kto_tag")
    yield {"prompt": _alpaca_prompt(row)} | answer | rest


def _alpaca_prompt(row: Row) -> str | list[Row]:
    """Return instruction and input as one text, or as the turn behind the history."""
    parts = [row["instruction"], row.get("input") or row.get("query")]
    text = "\n".join(part for part in parts if part)
    history = row.get("history") or []
    if not history:
        return text

    roles = ("user", "assistant")
    earlier = [
        {"role": role, "content": said}
        for pair in history
        for role, said in zip(roles, pair, strict=True)
    ]
    return [*earlier, {"role": "user", "content": text}]


def _rest(row: Row, *names: str) -> Row:
    return {name: value for name, value in row.items() if name not in names}


_LAYOUTS = (
    Layout("questions on texts, as in SQuAD", _is_article, _questions),
    Layout("dialogues of Human and Assistant, as in hh-rlhf", _is_hh, _hh_pair, "preferences"),
    Layout("answers A and B, as in SHP", lambda row: row.keys() >= _SHP, _shp_pair, "preferences"),
    Layout("a conversation with two answers", _is_turn_pair, _turn_pair, "preferences"),
    Layout("a conversation with a thumb", _is_tagged, _tagged_answer, "preferences"),
    Layout("an instruction with two answers", _is_alpaca_pair, _alpaca_pair, "preferences"),
    Layout("an instruction with a thumb", _is_alpaca_tagged, _alpaca_tagged, "preferences"),
    Layout("trees of messages, their ranked answers", is_tree, ranked_answers, "preferences"),
    Layout("trees of messages, their best replies", is_tree, best_conversation, "conversations"),
    Layout(
        "messages of trees, their ranked answers",
        is_message,
        ranked_answers,
        "preferences",
        gather_trees,
    ),
    Layout(
        "messages of trees, their best replies",
        is_message,
        best_conversation,
        "conversations",
        gather_trees,
    ),
)
