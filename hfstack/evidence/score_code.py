"""Score a causal model on problems of programming, by running what it writes"""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from accelerate import Accelerator
from trl import ModelConfig

from hfstack.data.reading.jsonl import write_jsonl
from hfstack.data.sources import SourceLog, describe_sources, load_mixture
from hfstack.errors import ConfigError
from hfstack.evidence.scored import ScoreArgs, scored_kind
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.runs.run import Run
from hfstack.sandbox.run import Limits, Outcome, Sandbox, open_sandbox
from hfstack.tasks.causal_lm.generate import generate_from_texts
from hfstack.tasks.causal_lm.prompt_format import find_prompt_format
from hfstack.tasks.code.pass_at_k import pass_at_k, summarise
from hfstack.tasks.code.problems import PROBLEM_COLUMNS, Problem, read_problems
from hfstack.tokens.chat import stop_at_end_of_turn


@dataclass
class CodeArgs:
    """Programs that a causal language model writes, and how they are run."""

    task: Literal["rows", "code"] = "rows"
    """What the rows are: labelled rows, or code (problems with a prompt and tests)."""
    code_samples: int = 1
    """Programs for each problem."""
    code_k: list[int] = field(default_factory=lambda: [1])
    """Report pass@k for each of these k: that one of k programs passes."""
    code_temperature: float = 0.0
    """Temperature of the programs; 0 takes the likeliest token, and then all samples are equal."""
    code_tokens: int = 256
    """Tokens of the longest program."""
    code_seconds: float = 5.0
    """Longest that one program may run."""
    allow_root: bool = False
    """Run programs of a model as root: a hole in the sandbox is then one in the whole machine."""
    allow_weak_sandbox: bool = False
    """Run them where the system gives no namespaces, with limits on time, memory, files and
    processes alone.
    """

    def __post_init__(self) -> None:
        if isinstance(self.code_k, int):  # a YAML names one without a list
            self.code_k = [self.code_k]
        if self.task != "code":
            self._refuse_unread()
        if self.code_samples < 1:
            raise ConfigError(f"--code_samples must be at least 1, got {self.code_samples}")
        if self.code_samples > 1 and self.code_temperature == 0:
            raise ConfigError(
                f"--code_samples {self.code_samples} at --code_temperature 0 are one program "
                "several times: set a temperature, such as 0.8"
            )
        for k in self.code_k:
            pass_at_k(self.code_samples, 0, k)  # refuses more than there are
        if not self.code_seconds > 0:
            raise ConfigError(f"--code_seconds must be above 0, got {self.code_seconds}")

    def _refuse_unread(self) -> None:
        """Refuse settings of programs where none are written."""
        for name in ("code_samples", "code_temperature", "code_tokens", "code_seconds"):
            if (value := getattr(self, name)) != getattr(type(self), name):
                raise ConfigError(f"--{name} {value} is read with --task code alone: leave it out")
        if self.code_k != [1]:
            raise ConfigError("--code_k is read with --task code alone: leave it out")


def record_code(
    run: Run,
    models: tuple[ModelConfig, str | None],
    args: CodeArgs,
    score_args: ScoreArgs,
    *,
    seed: int,
) -> tuple[dict[str, float], list[str]]:
    """Let a model, and a reference, write programs; return metrics and lines of them.

    Args:
        run: of the recipe.
        models: the model, and the name of one to compare with.
        args: how programs are written and run.
        score_args: name the problems.
        seed: of what is sampled.

    Raises:
        CheckpointError: a model is no causal language model.
        ConfigError: this system may not run programs.
        DataError: a row is no problem, or a reference solution does not pass its own tests.
    """
    sandbox = open_sandbox(
        Limits(seconds=args.code_seconds),
        allow_root=args.allow_root,
        allow_weak=args.allow_weak_sandbox,
    )
    log: SourceLog = {}
    datasets = score_args.datasets
    rows: Any = load_mixture(
        datasets,
        on_bad_row=score_args.on_bad_row,
        max_rows=score_args.max_rows,
        purpose="rows",
        columns=set(PROBLEM_COLUMNS),
        quarantine_file=run.output_dir / "quarantine.jsonl",
        log=log,
    )
    run.record_inputs(eval=describe_sources(datasets, log))
    problems = read_problems(rows.to_list(), ", ".join(map(str, datasets)))

    metrics: dict[str, float] = {"code_problems": len(problems)}
    metrics |= _reference_solutions(sandbox, problems)
    model_args, reference_model = models
    named = {"": model_args.model_name_or_path or ""}
    if reference_model is not None:
        named["reference_"] = reference_model
    lines: list[str] = []
    for prefix, name in named.items():
        answers = _write_programs(
            replace(model_args, model_name_or_path=name),
            problems,
            args,
            batch_size=score_args.batch_size or 16,
            seed=seed,
        )

        outcomes = sandbox.run_all(
            [
                problem.program(answer)
                for problem, own in zip(problems, answers, strict=True)
                for answer in own
            ]
        )
        found = _record(run, prefix, problems, answers, outcomes=outcomes, ks=args.code_k)
        metrics |= found
        shown = ", ".join(
            f"pass@{k} {found[f'{prefix}code_pass_at_{k}']:.3f} "
            f"({found[f'{prefix}code_pass_at_{k}_low']:.3f} to "
            f"{found[f'{prefix}code_pass_at_{k}_high']:.3f})"
            for k in args.code_k
        )
        lines.append(f"{name}: {shown} on {len(problems)} problems")
    return metrics, lines


def _reference_solutions(sandbox: Sandbox, problems: list[Problem]) -> dict[str, float]:
    """Return how many of the rows' own solutions pass, where they have any.

    What does not pass itself cannot be passed: it says that the sandbox or the tests are wrong.
    """
    solved = [problem for problem in problems if problem.solution is not None]
    if not solved:
        return {}
    outcomes = sandbox.run_all([one.program(one.solution or "") for one in solved])
    return {"code_solutions_pass": sum(one.passed for one in outcomes) / len(outcomes)}


def _write_programs(
    model_args: ModelConfig,
    problems: list[Problem],
    args: CodeArgs,
    *,
    batch_size: int,
    seed: int,
) -> list[list[str]]:
    """Return a model's answers to each problem, asked as it was trained."""
    scored_kind(model_args, ["causal language model"])
    tokenizer = load_tokenizer(model_args)
    model: Any = load_causal_lm(model_args, tokenizer)
    model.to(Accelerator().device).eval()
    kind = find_prompt_format(model_args.model_name_or_path or "", tokenizer).kind
    if kind == "chat":
        stop_at_end_of_turn(model, tokenizer)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = generate_from_texts(
            model,
            tokenizer,
            [problem.prompt for problem in problems for _ in range(args.code_samples)],
            kind=kind,
            max_new_tokens=args.code_tokens,
            temperature=args.code_temperature,
            batch_size=batch_size,
        )
    texts = [one.completion for one in found]
    step = args.code_samples
    return [texts[start : start + step] for start in range(0, len(texts), step)]


def _record(
    run: Run,
    prefix: str,
    problems: list[Problem],
    answers: list[list[str]],
    *,
    outcomes: list[Outcome],
    ks: list[int],
) -> dict[str, float]:
    """Write what became of each program; return the metrics of one model."""
    each = iter(outcomes)
    counts: list[tuple[int, int]] = []
    reasons: Counter[str] = Counter()

    # one line for each program
    file = f"{prefix}programs.jsonl"
    with write_jsonl(run.output_dir / file) as add:
        for problem, own in zip(problems, answers, strict=True):
            passed = 0
            for answer in own:
                outcome = next(each)
                passed += outcome.passed
                reasons[outcome.reason or "passed"] += 1
                row = {"task_id": problem.name, "answer": answer, "passed": outcome.passed}
                add(row | {"reason": outcome.reason})
            counts.append((len(own), passed))
    run.add_artifact(f"{prefix}programs", file)

    rows = [[reason, count] for reason, count in reasons.most_common()]
    run.add_table(f"{prefix}programs by what became of them", ["outcome", "programs"], rows)

    metrics: dict[str, float] = {}
    for k in ks:
        metrics |= {f"{prefix}code_{key}": value for key, value in summarise(counts, k).items()}
    return metrics
