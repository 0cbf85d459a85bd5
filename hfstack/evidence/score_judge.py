"""Ask a language model behind an endpoint to judge answers by a rubric.

    POST <url>/chat/completions   {"model": ..., "messages": [...], "temperature": 0}

as OpenAI's API and most servers have it. Each judgement is written to a file as it comes: what was
judged before is not asked again, by a run that was interrupted or by another one. A judge is only
worth what it agrees with people: `compare_with_people` measures that on pairs that people judged.
The token in the environment variable HFSTACK_JUDGE_TOKEN, where it is set, is sent along.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy

from hfstack.data.sources import Source, as_sources, describe_sources, load_mixture
from hfstack.diagnosis.win_rate import judge_both_orders
from hfstack.errors import ConfigError, DataError
from hfstack.intervals import bootstrap_intervals, share_interval
from hfstack.logs import get_logger
from hfstack.runs.run import Run
from hfstack.tasks.preferences.rows import answer_text
from hfstack.tasks.rewards.endpoint import Endpoint, call_in_threads, first_characters
from hfstack.tokens.turns import extract_text

logger = get_logger(__name__)

CACHE_FILE = "judgements.jsonl"
_ANSWER_BYTES = 1 << 20
_MILLION = 1_000_000
_MOST_UNREADABLE = 0.1  # share of judgements without a verdict
_VERDICT = re.compile(r"verdict\W*(A|B|tie)\b", re.IGNORECASE)
_SCORE = re.compile(r"score\W*(\d+(?:\.\d+)?)", re.IGNORECASE)
_LOWEST, _HIGHEST = 1.0, 10.0

RUBRIC = """Judge by how well an answer does what was asked: right, complete, clear, and no longer
than it needs to be. Do not prefer an answer because of its length or its place."""
_PAIR = """Reason in a few sentences. Then write, as the last line, one of
Verdict: A
Verdict: B
Verdict: tie"""
_ONE = """Reason in a few sentences. Then write, as the last line, a number from 1 (worst) to 10
(best), as in
Score: 7"""


@dataclass
class JudgeArgs:
    """An endpoint that judges answers, and what its judgements are held against."""

    judge_url: str | None = None
    """Base URL of an OpenAI-compatible endpoint that judges, such as http://127.0.0.1:8000/v1."""
    judge_model: str = ""
    """Model of the endpoint that judges, by the name that it has there."""
    rubric_file: str | None = None
    """Text file that says what a good answer is; a general rubric by default."""
    judge_timeout_s: float = 60.0
    """Seconds within which a judgement has to be there."""
    judge_concurrency: int = 4
    """Judgements that are asked for at the same time."""
    judge_cache: str | None = None
    """File of judgements, which are not asked for again; judgements.jsonl of the run by default."""
    judge_price: list[float] = field(default_factory=list)
    """Price of a million tokens read, and of a million written, to show what the judge cost."""
    human_judgements: list[Source] = field(default_factory=list)
    """Pairs that people judged, as `feedback` exports them: judged as well, to show how far the
    judge agrees with people.
    """

    def __post_init__(self) -> None:
        self.human_judgements = as_sources(self.human_judgements)
        if self.judge_price and (len(self.judge_price) != 2 or min(self.judge_price) < 0):
            raise ConfigError(
                f"--judge_price takes two numbers of 0 or more, got {self.judge_price}"
            )
        if self.judge_url is None and (self.rubric_file or self.human_judgements):
            raise ConfigError("--rubric_file and --human_judgements need a judge: --judge_url")
        if self.judge_url is not None and not self.judge_model:
            raise ConfigError("--judge_url needs --judge_model, the name of a model there")


@dataclass(frozen=True)
class _JudgeEndpoint(Endpoint):
    """The address that answers conversations."""

    kind: ClassVar[str] = "judge endpoint"
    gives: ClassVar[str] = "judgement"
    token_variable: ClassVar[str] = "HFSTACK_JUDGE_TOKEN"


class EndpointJudge:
    """Judges pairs of answers, or single ones; counts what it took."""

    def __init__(self, args: JudgeArgs, *, folder: Path, first_wait_s: float = 0.5) -> None:
        assert args.judge_url is not None, "a judge has an endpoint"
        self.endpoint = _JudgeEndpoint(
            f"{args.judge_url.rstrip('/')}/chat/completions",
            timeout_s=args.judge_timeout_s,
            max_concurrency=args.judge_concurrency,
            first_wait_s=first_wait_s,
        )
        self.model = args.judge_model
        self.rubric = _read_rubric(args.rubric_file)
        self.price = args.judge_price
        self.file = Path(args.judge_cache) if args.judge_cache else folder / CACHE_FILE
        self.counts: Counter[str] = Counter()
        self._known = _read_cache(self.file)
        self._lock = threading.Lock()

    def compare(self, prompts: list[Any], first: list[str], second: list[str]) -> list[float]:
        """Return for each pair the share by which the first answer wins: 1, 0, or 0.5.

        A judgement without a verdict is a tie, and counted.

        Raises:
            DataError: the endpoint fails, or too many of its judgements have no verdict.
        """
        rows = list(zip(map(extract_text, prompts), first, second, strict=True))
        return [
            {"A": 1.0, "B": 0.0}.get(said or "", 0.5)
            for said in self._judge("pair", rows, _read_verdict)
        ]

    def grade(self, prompts: list[Any], answers: list[str]) -> list[float | None]:
        """Return a score from 1 to 10 of each answer; None of a judgement without one.

        Raises:
            DataError: the endpoint fails, or too many of its judgements have no score.
        """
        rows = list(zip(map(extract_text, prompts), answers, strict=True))
        return self._judge("one", rows, _read_score)

    def metrics(self) -> dict[str, float]:
        """Return how often it was asked, what was read and written, and what that cost."""
        found = {
            "judge_calls": float(self.counts["calls"]),
            "judge_cached": float(self.counts["cached"]),
            "judge_unreadable": float(self.counts["unreadable"]),
            "judge_prompt_tokens": float(self.counts["prompt_tokens"]),
            "judge_completion_tokens": float(self.counts["completion_tokens"]),
        }
        if self.price:
            read, written = found["judge_prompt_tokens"], found["judge_completion_tokens"]
            found["judge_cost"] = (read * self.price[0] + written * self.price[1]) / _MILLION
        return found

    def _judge(
        self, kind: str, rows: Sequence[tuple[str, ...]], read: Callable[[str], Any]
    ) -> list[Any]:
        """Return what the judge said of each row, from the file or from the endpoint."""
        keys = [self._key(kind, row) for row in rows]
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._known}
        self.counts["cached"] += len(rows) - len(new)
        tasks = [(kind, key, row) for key, row in new.items()]
        call_in_threads(self._ask, tasks, self.endpoint.max_concurrency)

        found = [read(self._known[key]) for key in keys]
        unreadable = sum(value is None for value in found)
        self.counts["unreadable"] += unreadable
        if unreadable > _MOST_UNREADABLE * len(found):
            worst = next(key for key, value in zip(keys, found, strict=True) if value is None)
            raise DataError(
                f"judge endpoint {self.endpoint.name}: {unreadable} of {len(found)} judgements end "
                f"without a verdict, such as {self._known[worst][-80:]!r}: name a --judge_model "
                "that follows the form that it is asked for"
            )
        return found

    def _ask(self, kind: str, key: str, row: tuple[str, ...], is_over: threading.Event) -> None:
        """Ask for one judgement, and write it to the file."""
        body = {
            "model": self.model,
            "messages": self._messages(kind, row),
            "temperature": 0,
        }
        place = f"the answer to {row[0][:40]!r}"
        answer = self.endpoint.ask(body, place, is_over, most_bytes=_ANSWER_BYTES)
        try:
            values = json.loads(answer)
            text = values["choices"][0]["message"]["content"]
            usage = values.get("usage") or {}
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise DataError(
                f"judge endpoint {self.endpoint.name}: the answer for {place} is no chat "
                f"completion: {first_characters(answer)!r}"
            ) from None

        with self._lock:
            self._known[key] = str(text)
            self.counts["calls"] += 1
            for name in ("prompt_tokens", "completion_tokens"):
                count = usage.get(name) if isinstance(usage, dict) else None
                self.counts[name] += count if isinstance(count, int) else 0
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                line = {"key": key, "judge": self.model, "prompt": row[0], "answers": row[1:]}
                file.write(json.dumps(line | {"text": str(text)}, ensure_ascii=False) + "\n")

    def _messages(self, kind: str, row: tuple[str, ...]) -> list[dict[str, str]]:
        """Return the conversation that asks for one judgement."""
        names = ("Answer A", "Answer B") if kind == "pair" else ("Answer",)
        parts = [f"Question:\n{row[0]}"]
        parts += [f"{name}:\n{text}" for name, text in zip(names, row[1:], strict=True)]
        form = _PAIR if kind == "pair" else _ONE
        return [
            {"role": "system", "content": f"{self.rubric}\n\n{form}"},
            {"role": "user", "content": "\n\n".join(parts)},
        ]

    def _key(self, kind: str, row: tuple[str, ...]) -> str:
        """Return what a judgement depends on, as a digest."""
        text = json.dumps([kind, self.model, self.rubric, *row], ensure_ascii=False)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def load_endpoint_judge(run: Run, args: JudgeArgs) -> EndpointJudge | None:
    """Return the judge behind the endpoint that was named, or None; list its file."""
    if args.judge_url is None:
        return None
    judge = EndpointJudge(args, folder=run.output_dir)
    run.add_artifact("judgements", judge.file.resolve())
    run.record_inputs(people=describe_sources(args.human_judgements))
    return judge


def compare_with_people(judge: EndpointJudge, args: JudgeArgs) -> dict[str, float]:
    """Return how far a judge agrees with people on pairs; nothing without any.

    Which answer is shown as the first does not depend on which one people chose. Agreement by
    chance is taken out by Cohen's kappa (1960), with a bootstrap interval over pairs.

    Raises:
        DataError: the rows are no pairs of a prompt with a chosen and a rejected answer.
    """
    if not args.human_judgements:
        return {}
    rows = load_mixture(args.human_judgements, columns={"prompt", "chosen", "rejected"})
    absent = sorted({"prompt", "chosen", "rejected"} - set(rows.column_names))
    if absent:
        raise DataError(
            f"--human_judgements: no column {absent[0]!r}, found {', '.join(rows.column_names)}; "
            "it reads pairs as `feedback` exports them"
        )

    prompts, first, second, people = [], [], [], []
    for row in rows.to_list():
        chosen, rejected = answer_text(row["chosen"]), answer_text(row["rejected"])
        # the order of the texts alone, whichever was chosen, as often one way as the other
        pair = sorted((chosen, rejected), key=lambda text: hashlib.blake2b(text.encode()).digest())
        prompts.append(row["prompt"])
        first.append(pair[0])
        second.append(pair[1])
        people.append("first" if pair[0] == chosen else "second")

    judged = judge_both_orders(judge.compare, prompts, first, second)
    said = [
        "first" if share > 0.5 else "second" if share < 0.5 else "tie" for share in judged.shares
    ]
    same = [float(a == b) for a, b in zip(said, people, strict=True)]
    low, high = share_interval(same)
    codes = {name: code for code, name in enumerate(("first", "second", "tie"))}
    columns = numpy.array([[codes[a], codes[b]] for a, b in zip(said, people, strict=True)])

    def kappa(index: numpy.ndarray[Any, Any]) -> dict[str, float]:
        drawn = columns[index]
        return {"kappa": cohen_kappa(drawn[:, 0].tolist(), drawn[:, 1].tolist())}

    interval = bootstrap_intervals(kappa, len(columns)).get("kappa", (-1.0, 1.0))
    return {
        "judge_human_pairs": len(same),
        "judge_human_agreement": sum(same) / len(same),
        "judge_human_agreement_low": low,
        "judge_human_agreement_high": high,
        "judge_human_kappa": cohen_kappa(said, people),
        "judge_human_kappa_low": interval[0],
        "judge_human_kappa_high": interval[1],
    }


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Return the agreement of two raters beyond that of chance, at most 1.

    1 where both say one and the same of everything.
    """
    count = len(first)
    seen = sum(a == b for a, b in zip(first, second, strict=True)) / count
    one, other = Counter(first), Counter(second)
    chance = sum(one[label] * other[label] for label in one) / count**2
    return 1.0 if chance == 1 else (seen - chance) / (1 - chance)


def _read_verdict(text: str) -> str | None:
    """Return A, B or tie, as the last line says it; None without a verdict."""
    found = _VERDICT.findall(text)
    return {"a": "A", "b": "B"}.get(found[-1].lower(), "tie") if found else None


def _read_score(text: str) -> float | None:
    """Return the last score of a judgement; None without one from 1 to 10."""
    found = _SCORE.findall(text)
    score = float(found[-1]) if found else 0.0
    return score if _LOWEST <= score <= _HIGHEST else None


def _read_rubric(path: str | None) -> str:
    if path is None:
        return RUBRIC
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--rubric_file {path} cannot be read: {error}") from None
    if not text:
        raise ConfigError(f"--rubric_file {path} is empty: say what a good answer is")
    return text


def _read_cache(file: Path) -> dict[str, str]:
    """Return the judgements of a file; a last line that was not finished is removed."""
    if not file.is_file():
        return {}
    text = file.read_text(encoding="utf-8", errors="replace")
    whole, _, unfinished = text.rpartition("\n")
    if unfinished:
        logger.warning("%s: the last line is not finished, it is judged again", file)
        file.write_text(f"{whole}\n" if whole else "", encoding="utf-8")

    found: dict[str, str] = {}
    for number, line in enumerate(filter(None, whole.split("\n")), 1):
        try:
            row = json.loads(line)
            found[row["key"]] = row["text"]
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{file}:{number} is no judgement: remove the line, or name another --judge_cache"
            ) from None
    return found
