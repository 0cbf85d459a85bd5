"""Make preferences: answers from a model, files or the demo, judged by a rule.

    accelerate launch recipes/preferences.py --config recipes/preferences.yaml --seed 7
    hfstack run preferences --model_name_or_path runs/sft              # the same, shorter

reads   a model and prompts; or rows with several answers to each; or nothing, for the demo's
writes  train.jsonl and eval.jsonl (pairs), judged.jsonl and run.json in --output_dir
"""

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.reading.jsonl import write_jsonl
from hfstack.data.sources import DataArgs, SourceLog, describe_sources, iterate_rows
from hfstack.demo.answers import answers
from hfstack.demo.instructions import instruction
from hfstack.demo.rules import gold_score, require_demo_prompts
from hfstack.errors import ConfigError
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.runs.run import Run, RunArgs
from hfstack.tasks.causal_lm.generate import generate_from_texts
from hfstack.tasks.causal_lm.sampling import SamplingArgs, check_sampling
from hfstack.tasks.preferences.data import (
    add_label_noise,
    follow_model,
    judged_pairs,
    length_statistics,
    load_preferences,
    split_pairs,
)
from hfstack.tasks.preferences.rows import (
    PreferenceArgs,
    PreferenceCounts,
    answers_of,
    columns_read,
    prompt_of,
)

# functions (prompt, answer) -> number, higher is better; their mean decides. Put yours here.
JUDGES = [gold_score]


@dataclass
class MakeArgs(SamplingArgs):
    """How answers are made and judged."""

    convert_only: bool = False
    """Only turn --datasets (pairs, ratings, rankings, thumbs) into pairs and split them: nothing is
    made or judged.
    """
    demo_prompts: int = 1000
    """Prompts of the demo corpus to answer, when no --datasets are named."""
    answers_per_prompt: int = 4
    """Answers made for each prompt; every two of them with different scores are a pair."""
    label_noise: float = 0.0
    """Share of the train pairs whose answers are swapped on purpose, in [0, 0.5]; eval pairs are
    never swapped.
    """
    max_new_tokens: int = 200
    """Longest sampled answer, in tokens."""
    batch_size: int = 16
    """Prompts answered at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sampling(max_new_tokens=self.max_new_tokens)
        if self.answers_per_prompt < 2 or self.demo_prompts < 2:
            raise ConfigError("answers_per_prompt and demo_prompts must be at least 2")


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    preference_args: PreferenceArgs,
    args: MakeArgs,
    run_args: RunArgs,
) -> dict[str, float]:
    """Make, judge, pair, split and save; return the metrics."""
    settings = (model_args, data_args, preference_args, args, run_args)
    with Run.start(__file__, run_args.output_dir, *settings) as run:
        preference_args = follow_model(preference_args, model_args)
        counts = {"train": PreferenceCounts()}
        read: SourceLog = {}
        metrics: dict[str, float] = {}

        # data: pairs as they are, or answers that are judged here and paired by their scores
        if args.convert_only:
            splits = load_preferences(data_args, preference_args, counts=counts, log=read)
        else:
            answered = make_answers(
                model_args, data_args, preference_args, args, run_args.seed, log=read
            )
            if gold_score in JUDGES:
                require_demo_prompts([prompt for prompt, _ in answered])
            scores = {pair: fmean(judge(*pair) for judge in JUDGES) for pair in answered}
            judged = [
                {"prompt": prompt, "completion": answer, "rating": score}
                for (prompt, answer), score in scores.items()
            ]
            write_rows(run, "judged", judged)
            pairs = judged_pairs(scores, preference_args, counts=counts["train"])
            splits = split_pairs(Dataset.from_list(pairs), data_args)
            metrics |= {"answers": len(scores), "mean_score": fmean(scores.values())}

        run.record_inputs(
            model_args.model_name_or_path, train=describe_sources(data_args.datasets, read)
        )

        # save, and measure what was made
        splits["train"] = add_label_noise(splits["train"], args.label_noise, seed=run_args.seed)
        metrics |= asdict(counts["train"])
        metrics["flipped_pairs"] = sum(splits["train"]["flipped"])
        for name, part in splits.items():
            write_rows(run, name, list(part))
            metrics[f"{name}_pairs"] = len(part)
            lengths = length_statistics(part)
            metrics |= {f"{name}_{key}": value for key, value in lengths.items()}
        return run.finish(metrics)


def make_answers(
    model_args: ModelConfig,
    data_args: DataArgs,
    preference_args: PreferenceArgs,
    args: MakeArgs,
    seed: int,
    *,
    log: SourceLog,
) -> list[tuple[str, str]]:
    """Return (prompt, answer) pairs: sampled, read from rows, or from the generator."""
    read, most = columns_read(preference_args), data_args.max_rows
    rows = list(iterate_rows(data_args.datasets, columns=read, max_rows=most, log=log))

    # No model: absent, or "" on the command line.
    if not model_args.model_name_or_path:
        if rows:
            return [pair for row in rows for pair in answers_of(row, preference_args)]
        made = [
            answers(seed, index, count=args.answers_per_prompt)
            for index in range(args.demo_prompts)
        ]
        return [(row["prompt"], text) for row, different in made for text in different]

    rows = rows or [instruction(seed, index) for index in range(args.demo_prompts)]
    prompts = [
        prompt_of(row, preference_args) for row in rows for _ in range(args.answers_per_prompt)
    ]

    tokenizer = load_tokenizer(model_args)
    model: Any = load_causal_lm(model_args, tokenizer)
    completions = generate_from_texts(
        model.to(Accelerator().device).eval(),
        tokenizer,
        prompts,
        kind="chat" if preference_args.conversational else "prompt",
        max_new_tokens=args.max_new_tokens,
        **args.sampling(),
        batch_size=args.batch_size,
    )

    answered = zip(prompts, (each.completion for each in completions), strict=True)
    return [(prompt, text) for prompt, text in answered if text.strip()]


def write_rows(run: Run, name: str, rows: list[Any]) -> None:
    """Write `<name>.jsonl` and list it in run.json."""
    with write_jsonl(run.output_dir / f"{name}.jsonl") as add:
        for row in rows:
            add(row)
    run.add_artifact(name, f"{name}.jsonl")


if __name__ == "__main__":
    command_line(main)
