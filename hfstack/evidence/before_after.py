"""Measure a language model before and after training, on the same probes.

Held-out answers say whether what was trained got better; general text, which nothing was trained
on, says what it cost. Every probe is a list of rows, each with a sum and a count, so that the
change has a paired interval over rows.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy
import torch
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hfstack.data.sources import describe_sources, iterate_rows
from hfstack.demo.stories import story
from hfstack.disk import atomic_write
from hfstack.errors import DataError
from hfstack.evidence.fewshot import load_task_rows, load_task_scorer, read_task
from hfstack.evidence.paired import FEWEST_ROWS, Difference, paired_differences
from hfstack.evidence.score_judge import EndpointJudge, JudgeArgs, load_endpoint_judge
from hfstack.logs import get_logger
from hfstack.models.context import context_length
from hfstack.models.evaluation_mode import evaluation_mode
from hfstack.runs.environment import is_sharded
from hfstack.runs.run import Run
from hfstack.tasks.causal_lm.document_scores import score_documents
from hfstack.tasks.causal_lm.generate import Completion, generate_from_ids
from hfstack.tasks.causal_lm.prompt_format import PromptKind
from hfstack.tasks.preferences.encode import encode_answer
from hfstack.tasks.preferences.rows import tools_of
from hfstack.tasks.sft.answers import answer_losses
from hfstack.tasks.sft.encoding import last_prompt_and_answer
from hfstack.tasks.shared.probe_settings import ProbeArgs
from hfstack.tokens.chat import encode_for_generation
from hfstack.tokens.seams import opening_for
from hfstack.tokens.special_tokens import IGNORED_LABEL

logger = get_logger(__name__)

ProbeTable = numpy.ndarray[Any, Any]
"""(rows, 2): of each row a sum and what it is divided by."""
Instrument = Callable[[Any], dict[str, ProbeTable]]
"""Measures a model, in evaluation mode: tables by the names of probes."""
AnswerJudge = Callable[[list[dict[str, Any]], list[Completion]], list[float | None]]
"""Scores answers to the prompts of rows, higher is better; None where it has nothing to say."""

FILE = "before_after.json"
_UNSEEN_SEED = 20_000  # of demo stories that no run has trained on
_WINDOW_TOKENS = 256  # tokens read of a document
_RUN_LENGTH = 4  # words whose second time in an answer is a repetition


@dataclass(frozen=True)
class _Kind:
    """What a probe is called, and which way is better: 1 up, -1 down, 0 neither."""

    label: str
    better: int = 0


_PROBE_KINDS = {
    "pair_margin": _Kind("log-probability of better answers over worse", 1),
    "held_out_loss": _Kind("loss of held-out answers", -1),
    "reward": _Kind("reward of answers", 1),
    "judge_grade": _Kind("grade by the judge, 1 to 10", 1),
    "general_bits_per_byte": _Kind("general text, bits per byte", -1),
    "ended_share": _Kind("answers that end", 1),
    "repetition": _Kind("repetition in answers", -1),
    "answer_tokens": _Kind("tokens of an answer"),
}
_TRAINED = ("reward", "pair_margin", "held_out_loss")  # the first that was measured


def watch_change(
    run: Run, args: ProbeArgs, trainer: Any, rows: Any, *, judge: AnswerJudge | None = None
) -> None:
    """Let a trainer measure its model before and after, unless that is switched off.

    Args:
        run: of the recipe; its run.json gets the table and the verdict.
        args: of the recipe.
        trainer: of a causal language model, with its tokenizer.
        rows: held-out rows as the recipe reads them: conversations, prompts with or without
            answers, pairs, or texts.
        judge: of the answers; None without one.
    """
    if not args.probe_rows:
        return
    tokenizer = trainer.processing_class
    texts = _general_text(args)
    if args.probe_datasets:
        run.record_inputs(probe=describe_sources(args.probe_datasets))

    held = [_read_held_out(row) for row in islice(cast(Any, rows), args.probe_rows)]
    held = [one for one in held if one.prompt is not None]
    instruments: list[Instrument] = [lambda model: _measure_text(model, tokenizer, texts)]
    grader = _load_grader(run, args) if held and trainer.is_world_process_zero() else None
    if held:
        instruments += [
            lambda model: _score_answers(model, tokenizer, held),
            lambda model: _answer(
                model, tokenizer, held, longest=args.probe_tokens, judge=judge, grader=grader
            ),
        ]
    chat = any(not isinstance(one.prompt, str) for one in held)
    tasks = [
        _task_instrument(path, tokenizer, kind="chat" if chat else "prompt", rows=args.probe_rows)
        for path in args.eval_tasks
    ]
    trainer.add_callback(BeforeAndAfter(run, [*instruments, *tasks], at_evaluations=tasks))


class BeforeAndAfter(TrainerCallback):
    """Measures before the first step and after the last one.

    Args:
        run: of the recipe.
        instruments: what is measured.
        at_evaluations: what is measured at each evaluation too, and logged as `eval_<name>`.
    """

    def __init__(
        self,
        run: Run,
        instruments: Sequence[Instrument],
        *,
        at_evaluations: Sequence[Instrument] = (),
    ) -> None:
        self.run = run
        self.instruments = instruments
        self.at_evaluations = at_evaluations
        self.file = run.output_dir / FILE

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the model that training starts from; a resumed run has done so."""
        if is_sharded(args):
            logger.info("nothing is measured before and after: the model is in shards")
            return
        if state.global_step > 0:
            return
        found = self._measure(args, kwargs["model"], self.instruments)
        if state.is_world_process_zero:
            plain = {name: table.tolist() for name, table in found.items()}
            with atomic_write(self.file) as file:
                json.dump(plain, file)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the trained model, and record both beside each other."""
        # a checkpoint of before there were probes can be resumed; a stopped run is not done
        stopped = self.run.stop_asked and state.global_step < state.max_steps
        if is_sharded(args) or not self.file.is_file() or stopped:
            return
        before = {
            name: numpy.array(rows)
            for name, rows in json.loads(self.file.read_text(encoding="utf-8")).items()
        }
        after = self._measure(args, kwargs["model"], self.instruments)
        changes = compare_probes(before, after)
        self.run.add_table("before and after", *tabulate_changes(changes))
        for name, one in changes.items():
            self.run.metrics[f"before_{name}"] = one.before
            self.run.metrics[f"after_{name}"] = one.after
        logger.info("before and after: %s", describe_changes(changes))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask the tasks beside each evaluation, for the curves."""
        if not self.at_evaluations or is_sharded(args):
            return
        found = self._measure(args, kwargs["model"], self.at_evaluations)
        row = {f"eval_{name}": _value(table) for name, table in found.items()}
        state.log_history.append({"epoch": state.epoch, "step": state.global_step, **row})
        logger.info("%s", ", ".join(f"{name} {value:.4f}" for name, value in row.items()))

    def _measure(
        self, args: TrainingArguments, model: Any, instruments: Sequence[Instrument]
    ) -> dict[str, ProbeTable]:
        """Measure a model, without touching training's random state."""
        policy = getattr(model, "policy", model)  # PPO trains a policy with its critic
        found: dict[str, ProbeTable] = {}
        with torch.random.fork_rng(), torch.no_grad(), evaluation_mode(policy):
            torch.manual_seed(args.seed)
            for instrument in instruments:
                found |= instrument(policy)
        return found


@dataclass(frozen=True)
class ProbeChange:
    """A probe before and after, with the change and its interval where rows suffice."""

    before: float
    after: float
    difference: Difference | None

    @property
    def relative(self) -> float:
        """Return the change as a share of what was before."""
        return (self.after - self.before) / abs(self.before) if self.before else 0.0

    @property
    def is_clear(self) -> bool:
        """Return whether the interval of the change leaves 0 out."""
        return self.difference is not None and self.difference.is_clear


def compare_probes(
    before: dict[str, ProbeTable], after: dict[str, ProbeTable]
) -> dict[str, ProbeChange]:
    """Return the change of each probe that was measured twice on the same rows."""
    found: dict[str, ProbeChange] = {}
    for name, first in before.items():
        second = after.get(name)
        if second is None or len(second) != len(first):
            continue
        if not first[:, 1].sum() or not second[:, 1].sum():
            continue  # no reward applies to any of the answers
        values = [_value(table) for table in (first, second)]
        gap = _difference_of_tables(first, second) if len(first) >= FEWEST_ROWS else None
        found[name] = ProbeChange(values[0], values[1], gap)
    return found


def _value(table: ProbeTable) -> float:
    """Return the number that a table stands for."""
    return float(table[:, 0].sum() / table[:, 1].sum())


def tabulate_changes(changes: dict[str, ProbeChange]) -> tuple[list[str], list[list[Any]]]:
    """Return a table of the changes, what they mean, and the verdict below."""
    rows: list[list[Any]] = []
    for name, one in changes.items():
        gap = one.difference
        interval = "too few rows" if gap is None else f"{gap.low:+.3g} to {gap.high:+.3g}"
        numbers = [f"{one.before:.4g}", f"{one.after:.4g}", f"{one.after - one.before:+.3g}"]
        rows.append([_kind_of_probe(name).label, *numbers, interval, _meaning(name, one)])
    rows.append(["in words", describe_changes(changes), "", "", "", ""])
    return ["probe", "before", "after", "change", "95 % interval", "verdict"], rows


def describe_changes(changes: dict[str, ProbeChange]) -> str:
    """Return the verdict: what was trained, what it cost, and what got worst."""
    parts: list[str] = []
    # where answers earn rewards, or are preferred, their loss is not what was trained
    trained = next((name for name in _TRAINED if name in changes), "")
    if (one := changes.get(trained)) is not None:
        meaning = _meaning(trained, one)
        said = "too few rows to judge" if meaning == "not judged" else f"{meaning} at"
        parts.append(
            f"{said} what was trained ({_kind_of_probe(trained).label} {one.before:.3g} to "
            f"{one.after:.3g})"
        )

    general = changes.get("general_bits_per_byte")
    if general is not None:
        meaning = _meaning("general_bits_per_byte", general)
        share = 100 * abs(general.relative)
        size = f"{share:.1f} % " if share >= 0.1 else "less than 0.1 % "
        parts.append(f"general text {size if meaning in ('better', 'worse') else ''}{meaning}")

    # one thing by name: of all that is clearly worse, what changed most
    worse = [
        name
        for name, one in changes.items()
        if _meaning(name, one) == "worse" and name not in (trained, "general_bits_per_byte")
    ]
    if worse:
        name = max(worse, key=lambda name: abs(changes[name].relative))
        one = changes[name]
        parts.append(f"worse: {_kind_of_probe(name).label} {one.before:.3g} to {one.after:.3g}")
    elif all(_meaning(name, one) != "worse" for name, one in changes.items()):
        parts.append("nothing measured got clearly worse")
    return "; ".join(parts)


def _meaning(name: str, one: ProbeChange) -> str:
    """Return what a change means, in a word or two."""
    better = _kind_of_probe(name).better
    if not one.is_clear:
        return "no clear change" if one.difference is not None else "not judged"
    if not better:
        return "more" if one.after > one.before else "fewer"
    return "better" if (one.after - one.before) * better > 0 else "worse"


def _kind_of_probe(name: str) -> _Kind:
    return _PROBE_KINDS.get(name) or _Kind(name.replace("_", " "), 1)


def _difference_of_tables(before: ProbeTable, after: ProbeTable) -> Difference:
    def score(table: ProbeTable) -> Callable[[ProbeTable], dict[str, float]]:
        def value(rows: ProbeTable) -> dict[str, float]:
            total, count = table[rows].sum(axis=0)
            return {"value": float(total / count) if count else math.nan}

        return value

    return paired_differences(score(after), score(before), len(before), draws=1000)["value"]


def _task_instrument(
    path: str, tokenizer: PreTrainedTokenizerBase, *, kind: PromptKind, rows: int
) -> Instrument:
    """Return what asks a model a task; its table has whether each row is right."""
    task = read_task(path)
    loaded = load_task_rows(task, rows)

    def ask(model: Any) -> dict[str, ProbeTable]:
        scored = load_task_scorer(model, tokenizer, task, kind=kind).score(loaded)
        return {f"{task.name}_{scored.main}": _as_table([float(r) for r in scored.right or []])}

    return ask


def _general_text(args: ProbeArgs) -> list[str]:
    """Return the documents of general text."""
    if not args.probe_datasets:
        return [story(_UNSEEN_SEED, index).text for index in range(args.probe_rows)]
    rows = iterate_rows(args.probe_datasets, columns={"text"})
    texts = [row.get("text") for row in islice(rows, args.probe_rows)]
    found = [text for text in texts if isinstance(text, str) and text.strip()]
    if not found:
        raise DataError("--probe_datasets: no row has a text in the column `text`")
    return found


@dataclass(frozen=True)
class _Held:
    """A held-out row: its prompt, and the right and the worse answer that it has."""

    row: dict[str, Any]
    prompt: Any
    answer: Any = None
    rejected: Any = None
    tools: Any = None


def _read_held_out(row: dict[str, Any]) -> _Held:
    """Return a row of any recipe; one of plain text has no prompt."""
    tools = tools_of(row)
    if "chosen" in row:
        return _Held(row, row["prompt"], row["chosen"], row["rejected"], tools)
    if "prompt" in row:
        answer = row.get("completion") if row.get("label", True) else None
    elif "messages" in row:
        prompt, answer = last_prompt_and_answer(row)
        row = row | {"prompt": prompt}
    else:
        return _Held(row, None)

    prompt = row["prompt"]
    if isinstance(prompt, list) and isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    return _Held(row, prompt, answer, tools=tools)


def _measure_text(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> dict[str, ProbeTable]:
    """Measure bits per byte of the beginnings of documents."""
    context = context_length(model.config) or _WINDOW_TOKENS
    window = min(context, _WINDOW_TOKENS)
    short = [_first_tokens(tokenizer, text, window - 1) for text in texts]
    scores = score_documents(model, tokenizer, short, max_length=window, stride=max(1, window // 2))
    rows = [[one.nll / math.log(2), one.utf8_bytes] for one in scores]
    return {"general_bits_per_byte": numpy.array(rows)}


def _first_tokens(tokenizer: PreTrainedTokenizerBase, text: str, count: int) -> str:
    """Return a text up to about so many tokens, so that a probe has a bounded cost."""
    ids = cast(Any, tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return text if len(ids) <= count else cast(str, tokenizer.decode(ids[:count]))


def _score_answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, held: list[_Held]
) -> dict[str, ProbeTable]:
    """Measure the loss of right answers, and how far they are above worse ones."""
    rows: list[dict[str, list[int]]] = []
    kept: list[_Held] = []
    for one in held:
        encoded = [
            _encode_held_out(model, tokenizer, one, answer)
            for answer in (one.answer, one.rejected)
            if answer is not None
        ]
        if encoded and None not in encoded:
            rows += [row for row in encoded if row is not None]
            kept.append(one)
    if not rows:
        return {}

    found = iter(answer_losses(model, tokenizer, rows))
    losses: list[tuple[float, int]] = []
    margins: list[float] = []
    for one in kept:
        losses.append(next(found))
        if one.rejected is not None:
            margins.append(next(found)[0] - losses[-1][0])
    tables = {"held_out_loss": numpy.array(losses, dtype=float)}
    return tables | ({"pair_margin": _as_table(margins)} if margins else {})


def _encode_held_out(
    model: Any, tokenizer: PreTrainedTokenizerBase, one: _Held, answer: Any
) -> dict[str, list[int]] | None:
    """Return an answer behind its prompt; None where the model cannot read them whole."""
    ids, _, end = encode_answer(tokenizer, one.prompt, answer, one.tools)
    context = context_length(model.config)
    if (context is not None and len(ids) > context) or end >= len(ids):
        return None
    return {"input_ids": list(ids), "labels": [IGNORED_LABEL] * end + list(ids[end:])}


def _answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    held: list[_Held],
    *,
    longest: int,
    judge: AnswerJudge | None,
    grader: EndpointJudge | None,
) -> dict[str, ProbeTable]:
    """Answer the prompts greedily; measure length, end, repetition and rewards."""
    context = context_length(model.config)
    longest = longest if context is None else min(longest, context // 2)
    asked: list[tuple[_Held, list[int]]] = []
    for one in held:
        encoded = encode_for_generation(tokenizer, one.prompt, one.tools)
        if context is None or len(encoded) + longest <= context:
            asked.append((one, encoded))
    if not asked:
        return {}

    answers = generate_from_ids(
        model,
        tokenizer,
        [ids for _, ids in asked],
        max_new_tokens=longest,
        opening=opening_for([one.prompt for one, _ in asked], tokenizer),
    )
    columns: dict[str, Sequence[float | None]] = {
        "answer_tokens": [float(one.tokens) for one in answers],
        "ended_share": [float(one.finished) for one in answers],
        "repetition": [_repetition(one) for one in answers],
    }
    if judge is not None:
        columns["reward"] = judge([one.row for one, _ in asked], answers)
    if grader is not None:
        prompts = [one.prompt for one, _ in asked]
        columns["judge_grade"] = grader.grade(prompts, [one.completion for one in answers])
    return {name: _as_table(values) for name, values in columns.items()}


def _load_grader(run: Run, args: ProbeArgs) -> EndpointJudge | None:
    """Return the judge behind the endpoint that was named; the run keeps what it says."""
    return load_endpoint_judge(
        run,
        JudgeArgs(
            judge_url=args.probe_judge_url,
            judge_model=args.probe_judge_model,
            rubric_file=args.probe_rubric_file,
        ),
    )


def _as_table(values: Sequence[float | None]) -> ProbeTable:
    """Return one value a row; a row without one counts for nothing."""
    return numpy.array([[value or 0.0, float(value is not None)] for value in values])


def _repetition(answer: Completion) -> float:
    """Return the share of an answer's runs of words that it has had before."""
    words = answer.completion.split()
    runs = [tuple(words[i : i + _RUN_LENGTH]) for i in range(len(words) - _RUN_LENGTH + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
