"""Measure stereotypes: CrowS-Pairs, WinoBias, Winogender, BBQ, or pairs of yours.

    accelerate launch recipes/bias.py --config recipes/bias.yaml --datasets crows_pairs.csv
    hfstack run bias --model_name_or_path runs/sft --datasets crows_pairs.csv bbq.jsonl    # shorter

reads   a masked or causal language model; files of the sets, each known by its columns
writes  scores.jsonl (a line for each pair and question) and run.json in --output_dir
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from accelerate import Accelerator
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.reading.jsonl import write_jsonl
from hfstack.data.sources import Source, SourceLog, as_sources, describe_sources
from hfstack.errors import ConfigError
from hfstack.evidence.bias_metrics import (
    bbq_metrics,
    generation_metrics,
    pair_metrics,
    winogender_metrics,
)
from hfstack.evidence.bias_scores import PseudoLikelihood, score_choices, score_sentence_pairs
from hfstack.evidence.bias_sets import before_the_difference, read_bias_sets
from hfstack.evidence.measured import Measured
from hfstack.models.loading import is_masked_lm, load_causal_lm, load_masked_lm, load_tokenizer
from hfstack.runs.run import Run, RunArgs
from hfstack.tasks.causal_lm.generate import generate_from_texts


@dataclass
class BiasArgs:
    """Which sets to measure on, and how."""

    datasets: list[Source]
    """Files of the sets (Winogender's statistics of occupations are one), or of pairs of one's own.
    """
    pair_columns: list[str] = field(default_factory=list)
    """Two columns of your own pairs: the more stereotyped sentence, and the less stereotyped one.
    """
    category_column: str = "category"
    """Column of your own pairs by which they are grouped, where there is one."""
    pseudo_likelihood: PseudoLikelihood = "within_word"
    """What a masked model does not see: the scored token and the rest of its word, or as the
    original of CrowS-Pairs the token alone.
    """
    length_normalized: bool = True
    """Choose an answer of BBQ by log-probability for each byte; off, by that of the whole answer.
    """
    max_rows: int | None = None
    """Measure on at most this many pairs or questions of each set, drawn by --seed; all by default.
    """
    batch_size: int = 32
    """Rows of a forward pass."""
    max_new_tokens: int = 16
    """Tokens that a causal model writes where the sentences of WinoBias and Winogender part."""

    def __post_init__(self) -> None:
        self.datasets = as_sources(self.datasets)
        if self.max_rows == 0:
            raise ConfigError("--max_rows must be at least 1, got 0")
        if len(self.pair_columns) not in (0, 2):
            raise ConfigError(
                f"--pair_columns takes two columns, the more stereotyped one first, got "
                f"{len(self.pair_columns)}: {' '.join(self.pair_columns)}"
            )


def main(model_args: ModelConfig, bias_args: BiasArgs, run_args: RunArgs) -> dict[str, float]:
    """Score every pair and question; return the metrics."""
    args, measured = bias_args, Measured()
    with Run.start(__file__, run_args.output_dir, model_args, bias_args, run_args) as run:
        # data
        read: SourceLog = {}
        sets = read_bias_sets(
            args.datasets,
            pair_columns=args.pair_columns,
            category_column=args.category_column,
            log=read,
        )

        # model
        run.record_inputs(model_args.model_name_or_path)
        run.record_inputs(eval=describe_sources(args.datasets, read))
        tokenizer = load_tokenizer(model_args)
        masked = is_masked_lm(model_args)
        load: Any = load_masked_lm if masked else load_causal_lm
        model = load(model_args, tokenizer).to(Accelerator().device).eval()

        # evaluate: pairs, of a causal model as whole sentences, which is another number
        with write_jsonl(run.output_dir / "scores.jsonl") as write_row:
            for set_name, every in sets.pairs.items():
                name = set_name if masked else f"{set_name}_sentence"
                pairs = draw(every, args.max_rows, run_args.seed)
                scores = score_sentence_pairs(
                    model,
                    tokenizer,
                    [(pair.first, pair.second) for pair in pairs],
                    masked=masked,
                    pseudo_likelihood=args.pseudo_likelihood,
                    batch_size=args.batch_size,
                )
                pair_metrics(measured, name, pairs, scores)
                for pair, (first, second) in zip(pairs, scores, strict=True):
                    write_row({"set": set_name, **asdict(pair), "scores": [first, second]})

                if set_name == "winogender":
                    winogender_metrics(measured, name, pairs, scores, sets.female_share)
                if masked or set_name not in ("winobias", "winogender"):
                    continue

                # what it writes by itself where the sentences part
                completions = generate_from_texts(
                    model,
                    tokenizer,
                    [before_the_difference(pair)[0] for pair in pairs],
                    max_new_tokens=args.max_new_tokens,
                    temperature=0.0,
                    batch_size=args.batch_size,
                )
                texts = [one.completion for one in completions]
                generation_metrics(measured, set_name, pairs, texts, sets.female_share)

            # and questions, by the likeliest answer
            if questions := draw(sets.questions, args.max_rows, run_args.seed):
                answers = [question.answers for question in questions]
                found = score_choices(
                    model,
                    tokenizer,
                    [question.text for question in questions],
                    answers,
                    masked=masked,
                    batch_size=args.batch_size,
                )
                chosen = [
                    choose(*both, by_byte=args.length_normalized)
                    for both in zip(found, answers, strict=True)
                ]
                bbq_metrics(measured, questions, chosen)
                for question, values, choice in zip(questions, found, chosen, strict=True):
                    row = asdict(question) | {"scores": values, "chosen": choice}
                    write_row({"set": "bbq", **row})

        # finish
        run.add_artifact("scores", "scores.jsonl")
        for name, (columns, rows) in measured.tables.items():
            run.add_table(name, columns, rows)
        measured.warn_of_few()
        print("\n".join(measured.lines()))
        return run.finish(measured.metrics)


def draw(items: Sequence[Any], most: int | None, seed: int) -> list[Any]:
    """Return all items, or a random choice of so many in their order."""
    if most is None or most >= len(items):
        return list(items)
    places = np.random.default_rng(seed).choice(len(items), size=most, replace=False)
    return [items[at] for at in sorted(places)]


def choose(scores: Sequence[float], answers: Sequence[str], *, by_byte: bool) -> int:
    """Return the index of the likeliest answer."""
    lengths = [len(answer.encode()) if by_byte else 1 for answer in answers]
    return int(np.argmax([score / length for score, length in zip(scores, lengths, strict=True)]))


if __name__ == "__main__":
    command_line(main)
