"""Show which tokens moved a model, by integrated gradients, on a page.

    accelerate launch recipes/explain.py --config recipes/explain.yaml --steps 64
    hfstack run explain --model_name_or_path runs/classify --texts "a dull film"

Of a classifier a label's logit is explained, of a reward model the reward of an answer, of a causal
language model the log-probability of an answer, of an embedding model how well two texts match.

reads   such a model; texts, or rows with its columns
writes  explanations.html and explanations.jsonl in --output_dir
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from accelerate import Accelerator
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.reading.jsonl import write_jsonl
from hfstack.data.sources import Source, SourceLog, describe_sources, iterate_rows
from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.models.contents import identify_model
from hfstack.models.loading import require_model_name
from hfstack.runs.run import Run, RunArgs
from hfstack.tasks.classification.attributions import Explanation, explain_text
from hfstack.tasks.classification.attributions_page import explanation_page
from hfstack.tasks.classification.model import load_trained_classifier
from hfstack.tasks.retrieval.attributions import (
    MATCHED,
    MATCHERS,
    load_match_explainer,
    pairs_to_match,
)
from hfstack.tasks.rewards.attributions import load_pair_explainer, prompts_with_answers

logger = get_logger(__name__)

# What rows of prompts with answers may have.
PAIRS = ("prompt", "completion", "chosen", "rejected")


@dataclass
class ExplainArgs:
    """What to explain, and how exactly."""

    texts: list[str] = field(default_factory=list)
    """Texts to explain; of a language model or with --answers they are prompts."""
    answers: list[str] = field(default_factory=list)
    """Answers to --texts, one each: what a reward model scores, or passages to queries; a language
    model answers by itself without.
    """
    answer_tokens: int = 32
    """Longest answer that a language model gives by itself, in tokens."""
    datasets: list[Source] = field(default_factory=list)
    """Rows to explain, beside or instead of texts: local files, globs, folders or Hub ids."""
    max_rows: int = 20
    """Explain this many rows of each dataset, from its beginning."""
    label: str | None = None
    """Which label's logit to explain; by default the one that the model says."""
    steps: int = 32
    """Points of the path; doubled up to 512 until the completeness check is within the tolerance.
    """
    tolerance: float = 0.01
    """What the attributions may miss of the logit difference, as a share of it."""

    def __post_init__(self) -> None:
        for name in ("steps", "max_rows", "answer_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.answers and len(self.answers) != len(self.texts):
            raise ConfigError(
                f"--answers are to --texts: {len(self.answers)} answers, {len(self.texts)} texts"
            )
        if self.tolerance <= 0:
            raise ConfigError(f"--tolerance must be above 0, got {self.tolerance}")
        if not self.texts and not self.datasets:
            raise ConfigError('nothing to explain: give --texts "..." or --datasets file.jsonl')


def main(model_args: ModelConfig, explain_args: ExplainArgs, run_args: RunArgs) -> dict[str, float]:
    """Explain each text, check the sums and write the page."""
    with Run.start(__file__, run_args.output_dir, model_args, explain_args, run_args) as run:
        # model
        run.record_inputs(model_args.model_name_or_path)
        kind = identify_model(require_model_name(model_args), model_args.model_revision).kind
        read: SourceLog = {}
        settings = {"steps": explain_args.steps, "tolerance": explain_args.tolerance}

        # explain
        found = []
        if kind == "causal language model" or (kind == "reward model" and is_asked(explain_args)):
            answer_tokens = explain_args.answer_tokens
            explain = load_pair_explainer(model_args, kind, answer_tokens=answer_tokens)
            answers = explain_args.answers or [None] * len(explain_args.texts)
            pairs = [
                *zip(explain_args.texts, answers, strict=True),
                *prompts_with_answers(rows_of(explain_args, PAIRS, read)),
            ]
            found = [show(explain(*pair, **settings)) for pair in pairs]

        elif kind in MATCHERS:
            match = load_match_explainer(model_args, kind)
            rows = rows_of(explain_args, MATCHED, read)
            pairs = pairs_to_match(explain_args.texts, explain_args.answers, rows)
            found = [show(one) for pair in pairs for one in match(*pair, **settings)]
        else:
            model, tokenizer, info = load_trained_classifier(model_args)
            model.to(Accelerator().device)  # pyright: ignore[reportArgumentType]
            settings |= {"label": explain_args.label, "max_length": info.max_length}
            columns = [name for name in (info.text_column, info.text_pair_column) if name]
            rows = rows_of(explain_args, columns, read)
            texts = [*((text,) for text in explain_args.texts), *read_texts_of(rows, columns)]
            found = [show(explain_text(model, tokenizer, info, text, **settings)) for text in texts]
        run.record_inputs(explain=describe_sources(explain_args.datasets, read))

        # write
        page = explanation_page(found, model=model_args.model_name_or_path or "")
        (run.output_dir / "explanations.html").write_text(page, encoding="utf-8")

        with write_jsonl(run.output_dir / "explanations.jsonl") as add:
            for one in found:
                add(asdict(one) | {"delta": one.delta})

        run.add_artifact("explanations", "explanations.jsonl")
        run.add_artifact("page", "explanations.html")

        # check
        complete = sum(one.relative_delta <= explain_args.tolerance for one in found)
        if complete < len(found):
            logger.warning("only %d of %d add up: give more --steps", complete, len(found))

        return run.finish(
            {
                "texts": len(found),
                "complete_share": complete / len(found),
                "largest_delta": max(abs(one.delta) for one in found),
                "largest_relative_delta": max(one.relative_delta for one in found),
            }
        )


def rows_of(args: ExplainArgs, columns: Sequence[str], read: SourceLog) -> Iterable[Any]:
    """Return the rows to explain; `read` is filled while they are read."""
    if not args.datasets:
        return ()
    return iterate_rows(args.datasets, columns=columns, max_rows=args.max_rows, log=read)


def is_asked(args: ExplainArgs) -> bool:
    """Return whether prompts with answers are given, rather than texts alone."""
    return bool(args.answers) or bool(args.datasets)


def read_texts_of(rows: Iterable[Any], columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the text, or the two texts, of each row.

    Raises:
        DataError: a row lacks a column.
    """
    for row in rows:
        if absent := [name for name in columns if name not in row]:
            raise DataError(
                f"explain needs the column {absent[0]!r} of the model; found: {', '.join(row)}"
            )
        yield tuple(row[name] for name in columns)


def show(one: Explanation) -> Explanation:
    """Log what adds up to what, and return it."""
    moved = one.logit - one.baseline_logit
    logger.info("%s: %+.4f - %+.4f = %+.4f", one.label, one.logit, one.baseline_logit, moved)
    logger.info("attributions %+.4f, %d steps: %s", one.attributed, one.steps, one.texts[0][:50])
    return one


if __name__ == "__main__":
    command_line(main)
