"""Make items to judge from rows, or from answers that models gave.

Two equal answers are no pair: they are dropped and counted.
"""

import itertools
import json
import random
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hfstack.errors import ConfigError, DataError
from hfstack.feedback.kinds import (
    JUDGEMENT_KINDS,
    LONGEST_TEXT,
    Item,
    answers_wanted,
    read_verdict,
)
from hfstack.feedback.queue import QueueSettings
from hfstack.feedback.store import Store
from hfstack.tasks.preferences.rows import (
    PreferenceArgs,
    answer_text,
    pair_texts,
    problem_of_answer,
    read_row,
)

# What is in a text and not to be seen: zero-width space, word joiner, byte order mark, soft hyphen.
_UNSEEN = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad"))


@dataclass
class ProjectArgs:
    """What is judged, by whom, and how often."""

    kind: str = "pairs"
    """What people say of an item: pairs (which is better, and how much), ranking, thumbs, ratings
    or correction (the answer as it should be).
    """
    annotators: list[str] = field(default_factory=lambda: ["me"])
    """One name for each person; each gets a link of their own."""
    scales: list[str] = field(default_factory=lambda: ["helpful", "truthful", "harmless"])
    """Names of the scales, 1 to 5, of --kind ratings."""
    guidelines: str | None = None
    """Text file that is shown beside every item."""
    overlap: int = 1
    """People who judge each item; with 2 or more, agreement can be measured."""
    gold: str | None = None
    """File of items whose right judgement is known (chosen and rejected, label, or ranks), mixed in
    to see who is careful.
    """
    gold_share: float = 0.1
    """Share of what a person sees that comes from --gold."""
    repeat_share: float = 0.05
    """Share of what a person sees that they have judged before, to see whether they agree with
    themselves.
    """

    def __post_init__(self) -> None:
        if self.kind not in JUDGEMENT_KINDS:
            raise ConfigError(
                f"--kind must be one of {', '.join(JUDGEMENT_KINDS)}, got {self.kind!r}"
            )

        if not self.annotators:
            raise ConfigError("--annotators is empty: name at least one person")
        # compared as a reader of the links would tell them apart
        names = [unicodedata.normalize("NFC", name).strip() for name in self.annotators]
        for name in names:
            wrong = "twice" if names.count(name) > 1 else None
            if not name:
                wrong = "with no letters"
            elif any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in name):
                wrong = "with a control character"
            if wrong:
                raise ConfigError(
                    f"--annotators names {name!r} {wrong}: each person needs a name of their own"
                )
        self.annotators = names

        if self.overlap > len(self.annotators):
            raise ConfigError(
                f"--overlap {self.overlap} asks for more people than --annotators names "
                f"({len(self.annotators)})"
            )
        if self.gold is not None and self.kind not in ("pairs", "thumbs", "ranking"):
            raise ConfigError(f"--gold has no meaning with --kind {self.kind}: leave it out")
        if self.gold_share + self.repeat_share >= 1:
            raise ConfigError(
                f"--gold_share {self.gold_share} and --repeat_share {self.repeat_share} leave no "
                "room for new items: their sum must be below 1"
            )

        scales = [name.strip() for name in self.scales]
        if self.kind == "ratings" and (not all(scales) or not 0 < len(set(scales)) == len(scales)):
            raise ConfigError(f"--scales needs different names, got {self.scales}")


@dataclass
class Answered:
    """A prompt with the answers that can be compared.

    Args:
        makers: of each answer, which model gave it; -1 for those of a file.
    """

    prompt: Any
    answers: list[Any]
    makers: list[int]


@dataclass
class ItemCounts:
    """What became of the answers."""

    rows: int = 0
    items: int = 0
    equal_answers: int = 0  # answers to one prompt that another answer equals
    empty_answers: int = 0
    answers_left_out: int = 0  # of rankings, which have at most nine


def describe_project(args: ProjectArgs, made_of: dict[str, Any], *, seed: int) -> dict[str, Any]:
    """Return what the store keeps of a project, and what tells it from another.

    Args:
        made_of: models, files and settings that the items came from.

    Raises:
        DataError: the guidelines cannot be read.
    """
    guidelines = ""
    if args.guidelines is not None:
        try:
            guidelines = Path(args.guidelines).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--guidelines {args.guidelines} cannot be read: {error}") from None
    queue = QueueSettings(args.overlap, args.gold_share, args.repeat_share, seed)
    project = {
        "kind": args.kind,
        "title": f"Feedback: {args.kind}",
        "annotators": args.annotators,
        "scales": args.scales if args.kind == "ratings" else [],
        "guidelines": guidelines,
        "queue": asdict(queue),
        "made_of": made_of | {"gold": args.gold},
    }
    # as it comes back from the store
    return json.loads(json.dumps(project))


def must_make_items(store: Store, project: dict[str, Any]) -> bool:
    """Return whether a store is new; one that is not must be of this project.

    People may have been added since.

    Raises:
        DataError: it belongs to another project.
    """
    if store.is_new:
        return True
    found = store.project()
    if differing := _differences(found, project | {"annotators": found["annotators"]}):
        name, (before, now) = next(iter(differing.items()))
        raise DataError(
            f"{store.path} is the store of another project: its {name} is {before!r:.60}, "
            f"here it is {now!r:.60}; name another --store or --output_dir"
        )

    if gone := set(found["annotators"]) - set(project["annotators"]):
        raise DataError(
            f"{store.path} holds the judgements of {', '.join(sorted(gone))} too: name them in "
            "--annotators, or another --store"
        )
    added = [name for name in project["annotators"] if name not in found["annotators"]]
    if added:
        store.add_annotators(added)
    return False


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs, by the innermost name, of what both have.

    A store that an older hfstack made lacks some.
    """
    differing: dict[str, tuple[Any, Any]] = {}
    for name in wanted.keys() & found.keys():
        before, now = found[name], wanted[name]
        if isinstance(now, dict) and isinstance(before, dict):
            differing |= _differences(before, now)
        elif before != now:
            differing[name] = (before, now)
    return dict(sorted(differing.items()))


def read_answered(rows: Iterable[Any], args: PreferenceArgs) -> list[Answered]:
    """Return prompts with their answers from rows, judged or not.

    Rows of one answer with the same prompt belong together.

    Raises:
        DataError: a row has no prompt or no answer; the message says which.
    """
    found: dict[str, Answered] = {}
    for number, given in enumerate(rows, 1):
        row, problem = read_row(given, args, {})
        if problem is not None:
            raise DataError(f"row {number}: {problem}")
        prompt, answers = _texts_of(row, args)
        if prompt is None or not answers:
            raise DataError(
                f"row {number} has no prompt with an answer; found the columns {', '.join(given)}: "
                "map them with --prompt_column and --completion_column, --completions_column, or "
                "--chosen_column and --rejected_column, or name a model that answers: "
                "--model_name_or_path"
            )

        if problem := problem_of_texts(prompt, answers):
            raise DataError(f"row {number}: {problem}")
        key = json.dumps(prompt, ensure_ascii=False)
        one = found.setdefault(key, Answered(prompt, [], []))
        one.answers += answers
        one.makers += [-1] * len(answers)

    return list(found.values())


def problem_of_texts(prompt: Any, answers: Sequence[Any]) -> str | None:
    """Return why a person could not be shown these, or None."""
    problems = [problem_of_answer(prompt, "the prompt")]
    problems += [problem_of_answer(answer, "the answer") for answer in answers]
    return next((problem for problem in problems if problem), None)


def _texts_of(row: dict[str, Any], args: PreferenceArgs) -> tuple[Any, list[Any]]:
    if args.chosen_column in row and args.rejected_column in row:
        prompt, chosen, rejected = pair_texts(row, args)
        return prompt, [chosen, rejected]
    prompt = row.get(args.prompt_column)
    if isinstance(row.get(args.completions_column), list):
        return prompt, row[args.completions_column]
    answer = row.get(args.completion_column)
    return prompt, [] if answer is None else [answer]


def read_gold(kind: str, rows: Iterable[Any], args: PreferenceArgs) -> list[Item]:
    """Return items with the judgement that is known to be right.

    Raises:
        DataError: a row does not hold a judgement of that kind.
    """
    items = []
    for number, given in enumerate(rows, 1):
        row, problem = read_row(given, args, {})
        prompt, answers = _texts_of(row, args)
        verdict: dict[str, Any] | None = None
        if kind == "pairs" and args.chosen_column in row:
            verdict = {"choice": 0}
        elif kind == "thumbs" and isinstance(row.get(args.label_column), bool):
            verdict = {"label": row[args.label_column]}
        elif kind == "ranking" and isinstance(row.get(args.ranks_column), list):
            verdict = {"ranks": row[args.ranks_column]}

        least, most = answers_wanted(kind)
        if problem or verdict is None or not least <= len(answers) <= most:
            needed = {"pairs": "chosen and rejected", "thumbs": "completion and label"}
            raise DataError(
                f"gold row {number} holds no judgement of {kind} (needs prompt, "
                f"{needed.get(kind, 'completions and ranks')}): {problem or ', '.join(given)}"
            )

        problem = problem_of_texts(prompt, answers)
        if not problem and len({as_seen(answer) for answer in answers}) < len(answers):
            problem = f"two answers look the same: {answer_text(answers[0])[:60]!r}"
        if not problem and kind == "ranking":
            try:
                read_verdict(kind, verdict, answers=len(answers))
            except DataError as error:
                problem = str(error)
        if problem:
            raise DataError(f"gold row {number}: {problem}; nobody could judge it right")
        items.append(Item(prompt, answers, gold=verdict))
    return items


def items_of(
    kind: str, answered: Sequence[Answered], counts: ItemCounts, *, seed: int
) -> list[Item]:
    """Return every item that answers can make: all pairs, one ranking, or one each.

    Pairs are of different models where several answered.

    Raises:
        DataError: a prompt from a file has fewer answers than the kind needs.
    """
    items: list[Item] = []
    for number, one in enumerate(answered, 1):
        different = _different(one, counts)
        least, most = answers_wanted(kind)
        if kind == "correction":
            _refuse_long_answers(number, one)

        # Equal answers of a model are nobody's mistake; a file without a second answer is.
        if len(one.answers) < least:
            raise DataError(
                f"prompt {number} has {len(one.answers)} answer, an item of {kind} needs {least}: "
                f"{answer_text(one.prompt)[:60]!r}; for one answer use --kind thumbs, ratings or "
                "correction"
            )
        if len(different) < least:
            continue

        if kind == "pairs":
            made = [
                Item(one.prompt, [first, second], source={"makers": [maker, other]})
                for (first, maker), (second, other) in itertools.combinations(different, 2)
                if maker != other or len(set(one.makers)) == 1
            ]
            random.Random(f"pairs/{seed}/{number}").shuffle(made)
            items += made

        # the page has a key for each of nine
        elif kind == "ranking":
            kept = different[:most]
            counts.answers_left_out += len(different) - len(kept)
            makers = [maker for _, maker in kept]
            items.append(
                Item(one.prompt, [answer for answer, _ in kept], source={"makers": makers})
            )
        else:
            items += [
                Item(one.prompt, [answer], source={"makers": [maker]})
                for answer, maker in different
            ]
    return items


def _refuse_long_answers(number: int, one: Answered) -> None:
    """Raise where an answer is longer than its correction may be."""
    longest = max((len(answer_text(answer)) for answer in one.answers), default=0)
    if longest > LONGEST_TEXT:
        raise DataError(
            f"prompt {number} has an answer of {longest} characters, and a correction has at most "
            f"{LONGEST_TEXT}: {answer_text(one.prompt)[:60]!r}; shorten or remove it"
        )


def _different(one: Answered, counts: ItemCounts) -> list[tuple[Any, int]]:
    """Return the answers with their makers, each text once and none empty."""
    kept: dict[str, tuple[Any, int]] = {}
    for answer, maker in zip(one.answers, one.makers, strict=True):
        text = as_seen(answer)
        if not text:
            counts.empty_answers += 1
        elif text in kept:
            counts.equal_answers += 1
        else:
            kept[text] = (answer, maker)
    return list(kept.values())


def as_seen(answer: Any) -> str:
    """Return an answer's text without what nobody sees on the page.

    Letters and their accents may be one character or two (Unicode's NFC makes them one), lines end
    in several ways and with spaces, and some characters have no width.
    """
    text = unicodedata.normalize("NFC", answer_text(answer)).translate(_UNSEEN)
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def choose_random(
    items: Sequence[Item], *, per_prompt: int, most: int | None, seed: int
) -> list[Item]:
    """Return some items of each prompt, and of them `most`, in random order."""
    by_prompt: dict[str, list[Item]] = {}
    for item in items:
        by_prompt.setdefault(json.dumps(item.prompt), []).append(item)
    kept = [item for group in by_prompt.values() for item in group[:per_prompt]]
    random.Random(f"items/{seed}").shuffle(kept)
    return kept[:most]
