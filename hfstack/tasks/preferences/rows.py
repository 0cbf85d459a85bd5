"""Read one row of a preference file: its kind, its answers, and what is wrong.

Rows come in kinds, recognised by their columns:

    pairs      prompt, chosen, rejected; without a prompt when both answers are conversations
               with the same beginning
    ratings    prompt, completion, rating; several rows of one prompt make pairs, and the
               higher rating wins
    rankings   prompt, completions, ranks (1 is best, equal ranks are ties), or a list of
               ratings instead of ranks
    thumbs     prompt, completion, label (true or false)

Prompts and answers are plain text or conversations (lists of {role, content}).
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hfstack.data.places import RowProblem, refuse_rows
from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.row_counts import RowCounts
from hfstack.tokens.turns import (
    SYSTEM_NAMES,
    TOOLS_NAMES,
    columns_beside,
    is_conversation,
    read_tools,
    read_turns,
    with_system,
)

logger = get_logger(__name__)

Text = str | list[dict[str, Any]]


@dataclass
class PreferenceArgs:
    """Where a preference file keeps what, and how its rows become pairs."""

    prompt_column: str = "prompt"
    """Column of the prompt: text, or a conversation."""
    chosen_column: str = "chosen"
    """Column of the better answer, in files of pairs."""
    rejected_column: str = "rejected"
    """Column of the worse answer, in files of pairs."""
    completion_column: str = "completion"
    """Column of an answer, in files of ratings or thumbs."""
    completions_column: str = "completions"
    """Column of a list of answers, in files of rankings."""
    ranks_column: str = "ranks"
    """Column of a list of ranks, one for each of the completions; 1 is best, equal ranks are ties.
    """
    rating_column: str = "rating"
    """Column of a number, higher is better; beside a list of completions, a list of numbers."""
    label_column: str = "label"
    """Column of thumbs: true for a good answer, false for a bad one."""

    # how they are read
    conversational: bool | None = None
    """Make plain prompts and answers a user's and an assistant's turn, so that the chat template
    applies; by default where the model learned on turns, as its run.json says.
    """
    max_pairs_per_prompt: int | None = None
    """Of a prompt with many rated answers, keep this many pairs, those with the widest gap first;
    all by default.
    """
    rating_threshold: float | None = None
    """Ratings of at least this are a thumb up, others a thumb down; where a recipe wants labels and
    the file rates.
    """

    def __post_init__(self) -> None:
        if self.max_pairs_per_prompt is not None and self.max_pairs_per_prompt < 1:
            raise ConfigError(
                f"max_pairs_per_prompt must be at least 1, got {self.max_pairs_per_prompt}"
            )


def columns_read(args: PreferenceArgs) -> set[str]:
    """Return every column that a row of preferences may be read from."""
    named = {value for name, value in asdict(args).items() if name.endswith("_column")}
    return named | {*SYSTEM_NAMES, *TOOLS_NAMES}


def number_columns(args: PreferenceArgs) -> set[str]:
    """Return the columns whose cells in a table may be numbers, unlike texts."""
    return {args.ranks_column, args.rating_column, args.label_column}


@dataclass
class PreferenceCounts:
    """What happened while rows became pairs or labels."""

    rows: int = 0
    kept: int = 0
    bad_rows: int = 0  # an empty or missing answer, chosen equal to rejected
    ties: int = 0  # pairs of answers to one prompt with equal ratings or ranks
    duplicates: int = 0  # rows or pairs that occur again
    # pairs in both orders, answers with both thumbs; the majority is kept
    contradictions: int = 0
    parted_early: int = 0  # pairs whose answers differ before their last turn
    prompts: int = 0


def answer_text(value: Text) -> str:
    """Return the text of a prompt or an answer.

    Of conversations it is their contents, with the thoughts and the calls of tools.
    """
    if isinstance(value, str):
        return value
    return "\n".join(
        "\n".join(
            [
                *([message["reasoning_content"]] if "reasoning_content" in message else []),
                str(message.get("content") or ""),
                *(json.dumps(call["function"]) for call in message.get("tool_calls", [])),
            ]
        )
        for message in value
    )


def read_row(
    row: Any, args: PreferenceArgs, beside: dict[str, str]
) -> tuple[dict[str, Any], str | None]:
    """Return a row with its conversations read, and what is wrong with it or None.

    Args:
        beside: of `find_columns_beside`; the system turn stands in front of the prompt, and
            schemas of tools are JSON text in `tools`.
    """
    read = {name: value for name, value in row.items() if name not in beside.values()}
    try:
        for column in (args.chosen_column, args.rejected_column, args.completion_column):
            if column in row:
                read[column] = _read_text(row[column], "assistant")
        if args.prompt_column in row:
            read[args.prompt_column] = _read_text(row[args.prompt_column], "user")
        if isinstance(row.get(args.completions_column), list):
            answers = [_read_text(answer, "assistant") for answer in row[args.completions_column]]
            read[args.completions_column] = answers

        _add_system(read, args, row[beside["system"]] if "system" in beside else None)
        tools = read_tools(row[beside["tools"]]) if "tools" in beside else []
    except DataError as error:
        return row, str(error)

    return read | ({"tools": json.dumps(tools, ensure_ascii=False)} if tools else {}), None


def find_columns_beside(
    rows: Any, args: PreferenceArgs, kind: str, row_counts: RowCounts | None = None
) -> dict[str, str]:
    """Return the columns of system turns and tools by their use, and log the rest.

    Only conversations have a place for them; a list of rows may have other keys in each row.
    `kind` is that of `kind_of`.
    """
    found = list(getattr(rows, "column_names", None) or dict.fromkeys(k for r in rows for k in r))
    spare = [name for name in found if name not in columns_of_kinds(args)[kind]]
    columns = {name: [row.get(name) for row in rows] for name in spare}
    beside = columns_beside(columns, spare)

    first = next(iter(rows), {})
    answers = (args.prompt_column, args.chosen_column, args.completion_column)
    texts = [first[column] for column in answers if column in first]
    chat = args.conversational or any(
        isinstance(text, list | dict) or is_conversation(text) for text in texts
    )
    if beside and not chat:
        logger.warning(
            "the columns %s are not read: only conversations have a place for them "
            "(--conversational makes turns of plain prompts and answers)",
            ", ".join(beside.values()),
        )
        beside = {}

    unread = [name for name in spare if name not in beside.values()]
    if row_counts is not None:
        row_counts.name_columns(found, [name for name in found if name not in unread])
    logger.info(
        "preferences are read from the columns %s; not read: %s",
        ", ".join(name for name in found if name not in unread),
        ", ".join(unread) or "none",
    )
    return beside


def tools_of(row: Any) -> list[dict[str, Any]] | None:
    """Return the schemas of the tools of a pair or a labelled answer, or None."""
    return json.loads(row["tools"]) if row.get("tools") else None


def _read_text(value: Any, role: str) -> Any:
    """Return a conversation as its turns; text, and what is neither, as it is."""
    is_turns = isinstance(value, list | dict) or is_conversation(value)
    return read_turns(value, role) if is_turns else value


def _add_system(row: dict[str, Any], args: PreferenceArgs, text: Any) -> None:
    """Put a system turn in front of the prompt, or of answers that hold their prompt."""
    if not text:
        return

    prompt = row.get(args.prompt_column)
    answers = [row.get(column) for column in (args.chosen_column, args.rejected_column)]
    if all(isinstance(turns, list) and _holds_prompt(turns, prompt) for turns in answers):
        row.pop(args.prompt_column, None)
        row[args.chosen_column] = with_system(row[args.chosen_column], text)
        row[args.rejected_column] = with_system(row[args.rejected_column], text)
    else:
        row[args.prompt_column] = with_system(turns_of(prompt or "", "user"), text)


def _holds_prompt(turns: list[dict[str, Any]], prompt: Text | None) -> bool:
    """Return whether an answer is a whole conversation, its prompt included."""
    if isinstance(prompt, list):
        return turns[: len(prompt)] == prompt
    return bool(turns) and turns[0]["role"] != "assistant"


def prompt_of(row: Any, args: PreferenceArgs) -> str:
    """Return the plain prompt of a row that asks for answers.

    Raises DataError when the column has another name or holds no text.
    """
    prompt = row.get(args.prompt_column)
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(
            f"a prompt must be text in the column {args.prompt_column!r}, got "
            f"{str(prompt)[:40]!r}; found the columns {', '.join(row)}: map it with --prompt_column"
        )
    return prompt


def answers_of(row: Any, args: PreferenceArgs) -> list[tuple[str, str]]:
    """Return (prompt, answer) for each plain answer of a row that is not judged yet.

    Raises DataError when there is none: no column of an answer or of a list of answers, or an empty
    one.
    """
    prompt = prompt_of(row, args)
    found = row.get(args.completions_column, row.get(args.completion_column))
    answers = [found] if isinstance(found, str) else found
    usable = isinstance(answers, list) and bool(answers)
    if not usable or any(not isinstance(one, str) or not one.strip() for one in answers):
        raise DataError(
            f"answers to judge must be text in {args.completion_column!r} or a list in "
            f"{args.completions_column!r}, got {str(found)[:40]!r}; found the columns "
            f"{', '.join(row)}: map them with --completion_column or --completions_column, or name "
            "a model that answers with --model_name_or_path"
        )

    return [(prompt, answer) for answer in answers]


def kind_of(
    rows: Iterable[Any], args: PreferenceArgs, *, first_choice: str = "pairs"
) -> tuple[str, Iterator[Any]]:
    """Return the kind of the rows by their columns, and the rows.

    Args:
        first_choice: the kind where several fit.

    Raises:
        DataError: the columns are of no kind; the message names them and the flags that map them.
    """
    iterator = iter(rows)
    first = next(iterator, None)
    if first is None:
        raise DataError("no preferences: the data has no rows")
    found = getattr(rows, "column_names", None) or list(first)
    have = set(found)

    kinds = columns_of_kinds(args)
    whole = itertools.chain([first], iterator)
    for kind in sorted(kinds, key=lambda kind: kind != first_choice):
        if kinds[kind] <= have:
            return kind, whole

    answers = {args.chosen_column, args.rejected_column}
    if answers <= have and all(
        isinstance(first[column], list) or is_conversation(first[column]) for column in answers
    ):
        return "pairs", whole  # conversations that hold their prompt
    raise DataError(_other_names(found, kinds, args))


def columns_of_kinds(args: PreferenceArgs) -> dict[str, set[str]]:
    """Return the columns that make up each kind of rows."""
    return {
        "pairs": {args.prompt_column, args.chosen_column, args.rejected_column},
        "ratings": {args.prompt_column, args.completion_column, args.rating_column},
        "thumbs": {args.prompt_column, args.completion_column, args.label_column},
        "rankings": {args.prompt_column, args.completions_column, args.ranks_column},
        "rated lists": {args.prompt_column, args.completions_column, args.rating_column},
    }


def _other_names(found: Sequence[str], kinds: dict[str, set[str]], args: PreferenceArgs) -> str:
    """Return in one line what was asked, what was found, and the flags that map it."""
    flags = {value: f"--{name}" for name, value in asdict(args).items() if name.endswith("_column")}
    nearest = min(kinds.values(), key=lambda columns: len(columns - set(found)))
    if len(nearest - set(found)) == 3:
        nearest = kinds["pairs"]
    spare = [name for name in found if name not in nearest]

    missing = ", ".join(
        f"{flags[column]} (now {column!r})" for column in sorted(nearest - set(found))
    )

    ways = "; ".join(
        f"{kind}: {' + '.join(sorted(columns))}"
        for kind, columns in kinds.items()
        if kind != "rated lists"
    )

    return (
        f"these columns are of no kind of preferences: {', '.join(found)}; map them with "
        f"{missing}, choosing among: {', '.join(spare) or 'none'} (kinds are {ways})"
    )


def pair_texts(row: Any, args: PreferenceArgs) -> tuple[Any, Any, Any]:
    """Return prompt, chosen and rejected of a row.

    Conversations are split where the two answers differ: what they share belongs to the prompt.
    """
    chosen, rejected = row[args.chosen_column], row[args.rejected_column]
    prompt = row.get(args.prompt_column)

    conversations = isinstance(chosen, list) and isinstance(rejected, list)
    if not conversations or not chosen or not rejected:
        return prompt, chosen, rejected

    # equal conversations still have a last turn
    shared, most = 0, min(len(chosen), len(rejected)) - 1
    while shared < most and chosen[shared] == rejected[shared]:
        shared += 1

    # answers that begin with the assistant's turn do not hold their prompt
    if chosen[0].get("role") == "assistant":
        if not shared or prompt is None:
            return prompt, chosen, rejected
        before = turns_of(prompt, "user")
    else:
        # the prompt may end with turns that the answers begin with, as without its system turn
        before = prompt if isinstance(prompt, list) else []
        repeated = range(min(len(before), shared), -1, -1)
        both = next(n for n in repeated if before[len(before) - n :] == chosen[:n])
        before = before[: len(before) - both]
    return [*before, *chosen[:shared]], chosen[shared:], rejected[shared:]


def parts_early(pair: dict[str, Text]) -> bool:
    """Return whether the sides of a pair hold more than the assistant's answer.

    Their conversations differ in an earlier turn, so that turns of the user follow.
    """
    answers = (pair["chosen"], pair["rejected"])
    turns = (turn for answer in answers if not isinstance(answer, str) for turn in answer)
    return any(turn.get("role") != "assistant" for turn in turns)


def normal(prompt: Text, chosen: Text, rejected: Text, args: PreferenceArgs) -> dict[str, Text]:
    """Return all three as plain text, or all three as conversations."""
    plain = isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str)
    if plain and not args.conversational:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    turns = {"prompt": turns_of(prompt, "user"), "chosen": turns_of(chosen, "assistant")}
    return {**turns, "rejected": turns_of(rejected, "assistant")}


def turns_of(value: Text, role: str) -> list[dict[str, Any]]:
    """Return a conversation as it is, text as one turn of `role`."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [dict(message) for message in value]


def problem_of_answer(value: Any, column: str) -> str | None:
    """Return what is wrong with an answer, or with a prompt that is empty, or None."""
    if not isinstance(value, str | list):
        return (
            f"{column} must be text or a conversation, got "
            f"{'null' if value is None else type(value).__name__}"
        )
    return None if answer_text(value).strip() else f"{column} is empty"


def read_pair(row: Any, args: PreferenceArgs) -> tuple[dict[str, Any], str | None]:
    """Return prompt, chosen, rejected and tools of a row, and its problem or None."""
    prompt, chosen, rejected = pair_texts(row, args)
    problem = problem_of_answer(chosen, args.chosen_column)
    problem = problem or problem_of_answer(rejected, args.rejected_column)
    problem = problem or problem_of_prompt(row, prompt, chosen, args)
    if problem is not None:
        return {}, problem

    if answer_text(chosen) == answer_text(rejected):
        sides = f"{args.chosen_column} and {args.rejected_column}"
        return {}, f"{sides} are the same: {answer_text(chosen)[:60]!r}"
    tools = {"tools": row["tools"]} if "tools" in row else {}
    return normal(prompt, chosen, rejected, args) | tools, None


def problem_of_prompt(row: Any, prompt: Any, chosen: Any, args: PreferenceArgs) -> str | None:
    """Return what is wrong with the prompt of a pair, or None.

    Args:
        row: as `read_row` returns it.
        prompt: of `pair_texts`, as is `chosen`.
        chosen: the turns behind the prompt, or text.
    """
    if not isinstance(prompt, str | list):
        return f"{args.prompt_column} is {'null' if prompt is None else 'no text'}"
    if isinstance(prompt, str):
        return None

    if not prompt and isinstance(chosen, list) and chosen[0].get("role") != "assistant":
        return (
            f"{args.chosen_column} and {args.rejected_column} begin with different turns, and so "
            "answer different prompts"
        )
    roles = [turn.get("role") for turn in prompt]
    given = row.get(args.prompt_column)
    if isinstance(given, list) and len(prompt) > len(given) and roles[len(given) - 1] == "user":
        if roles[len(given)] == "user":
            return f"{args.chosen_column} begins with another turn than {args.prompt_column} ends"
        return None

    # beside whole conversations the prompt may be text: any of their turns, or all in one
    if not isinstance(given, str) or not given.strip():
        return None
    asked = " ".join(given.split())
    turns = [" ".join(answer_text([turn]).split()) for turn in prompt]
    if asked in " ".join(turns) or any(text and text in asked for text in turns):
        return None
    return f"{args.prompt_column} is {given[:60]!r}, which the turns of the answers do not hold"


def settle_bad_rows(
    problems: Sequence[RowProblem],
    rows: Sequence[Any],
    counts: PreferenceCounts,
    bad: list[dict[str, Any]] | None,
) -> None:
    """Collect the rows that have a problem, or raise where they are not collected.

    Args:
        problems: with the numbers of rows, from 1.
        rows: all rows as they were given.
        counts: counts the bad ones.
        bad: receives {"row", "fault"}; None to raise.

    Raises:
        RefusedRows: naming the first five.
    """
    if bad is None:
        which = "it" if len(problems) == 1 else "them"
        refuse_rows(problems, f"fix or remove {which}, or set --on_bad_row skip")
        return

    counts.bad_rows += len(problems)
    bad += [{"row": dict(rows[number - 1]), "fault": fault} for _, number, fault in problems]
