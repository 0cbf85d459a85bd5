"""Compare two models' answers: win rate, also length-controlled, with intervals.

    accelerate launch recipes/win_rate.py --config recipes/win_rate.yaml --reference_model runs/sft
    hfstack run win_rate --reference_model runs/sft                     # the same, shorter

reads   two models with their tokenizers; rows with a column `prompt`
writes  answers.jsonl (both answers to each prompt, and who won) and run.json in --output_dir
"""

from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from transformers import set_seed
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.reading.jsonl import write_jsonl
from hfstack.data.sources import DataArgs, describe_sources
from hfstack.demo.rules import gold_score
from hfstack.diagnosis.win_rate import (
    describe_answers,
    judge_both_orders,
    judge_by_score,
    length_controlled_win_rate,
    perplexity_of_answers,
    win_rate,
)
from hfstack.errors import ConfigError
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.runs.run import Run, RunArgs
from hfstack.tasks.causal_lm.generate import Completion, check_sampling, generate_from_ids
from hfstack.tasks.rewards.reward_model import RewardModel
from hfstack.tasks.rl.prompts import load_prompts
from hfstack.tokens.chat import prompt_ids, stop_at_end_of_turn, text_of


def obeys(prompts: list[Any], answers: list[str]) -> list[float]:
    """Score by the demo's gold rule, 0 to 1: does the story obey the instruction?"""
    return [
        gold_score(text_of(prompt), text) for prompt, text in zip(prompts, answers, strict=True)
    ]


# Used when no --reward_model is given: any function (prompts, first, second) -> shares in [0, 1] by
# which first wins.
JUDGE = judge_by_score(obeys)


@dataclass
class WinRateArgs:
    """Whom to compare with, who judges, and how answers are written."""

    reference_model: str | None = None
    """Model to compare with: a folder or a Hub id."""
    reward_model: str | None = None
    """Reward model that judges in place of JUDGE: a folder or a Hub id; the higher reward wins."""
    reward_as_text: bool = False
    """Give the reward model prompt and answer as plain text, because it was trained on plain pairs.
    """
    as_chat: bool = True
    """Make each plain prompt the user's turn of a conversation, as sft does; off, prompts are read
    as they are.
    """
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float = 0.7
    """Sampling temperature; 0 takes the likeliest token each time."""
    batch_size: int = 16
    """Prompts per batch."""


def main(
    model_args: ModelConfig, data_args: DataArgs, win_args: WinRateArgs, run_args: RunArgs
) -> dict[str, float]:
    """Let both models answer, judge the answers and return the metrics."""
    args = win_args
    check_sampling(
        max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=1.0, top_k=0
    )

    if args.reference_model is None:
        raise ConfigError(
            "--reference_model is required: the model to compare with, such as runs/sft"
        )

    with Run.start(__file__, run_args.output_dir, model_args, data_args, win_args, run_args) as run:
        for parent in (model_args.model_name_or_path, args.reference_model, args.reward_model):
            run.add_parent(parent)
        bad_rows = run.output_dir / "quarantine.jsonl"
        splits = load_prompts(
            data_args, recipe="win_rate", as_chat=args.as_chat, quarantine_file=bad_rows
        )
        prompts = list(splits.get("eval", splits["train"])["prompt"])

        run.record_data(
            "prompts", describe_sources([*data_args.datasets, *data_args.eval_datasets])
        )
        device = Accelerator().device
        judge = JUDGE

        if args.reward_model is not None:
            judge = judge_by_score(
                RewardModel(args.reward_model, device=device, as_text=args.reward_as_text).score
            )

        def write(model_args: ModelConfig) -> tuple[Any, Any, list[list[int]], list[Completion]]:
            """Load a model and let it answer, from the same seed as the other one."""
            tokenizer = load_tokenizer(model_args)
            model = load_causal_lm(model_args, tokenizer).to(device).eval()  # pyright: ignore[reportArgumentType]
            stop_at_end_of_turn(model, tokenizer)
            set_seed(run_args.seed)
            ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]

            how = {"temperature": args.temperature, "batch_size": args.batch_size}
            return (
                model,
                tokenizer,
                ids,
                generate_from_ids(model, tokenizer, ids, max_new_tokens=args.max_new_tokens, **how),
            )

        ours = write(model_args)[3]
        reference, tokenizer, ids, theirs = write(
            replace(model_args, model_name_or_path=args.reference_model)
        )
        our_texts, their_texts = (
            [one.completion for one in ours],
            [one.completion for one in theirs],
        )

        judged = judge_both_orders(judge, prompts, our_texts, their_texts)
        rate = win_rate(judged.shares)
        controlled = length_controlled_win_rate(
            judged.shares,
            list(map(len, our_texts)),
            list(map(len, their_texts)),
            seed=run_args.seed,
        )

        metrics = (
            {"prompts": len(prompts)}
            | rate.named("win_rate")
            | controlled.named("win_rate_length_controlled")
        )

        metrics |= (
            judged.counts() | describe_answers(ours) | describe_answers(theirs, prefix="reference_")
        )

        for prefix, answers in {"": ours, "reference_": theirs}.items():
            perplexity = perplexity_of_answers(
                reference, tokenizer, ids, answers, batch_size=args.batch_size
            )
            metrics |= {f"{prefix}perplexity_under_reference": perplexity}

        columns = {
            "prompt": prompts,
            "answer": our_texts,
            "reference_answer": their_texts,
            "share": judged.shares,
        }

        with write_jsonl(run.output_dir / "answers.jsonl") as write_row:
            for row in zip(*columns.values(), strict=True):
                write_row(dict(zip(columns, row, strict=True)))

        run.add_artifact("answers", "answers.jsonl")
        print(f"wins {rate} of {len(prompts)} prompts, at equal length {controlled}")
        return run.finish(metrics)


if __name__ == "__main__":
    command_line(main)
