"""Compare two models' answers: win rate, also length-controlled, with intervals.

    accelerate launch recipes/win_rate.py --config recipes/win_rate.yaml --reference_model runs/sft
    hfstack run win_rate --reference_model runs/sft                     # the same, shorter

reads   two models with their tokenizers; rows with a column `prompt`
writes  answers.jsonl (both answers to each prompt, and who won) and run.json in --output_dir
"""

from dataclasses import dataclass, replace
from functools import partial

from accelerate import Accelerator
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.reading.jsonl import write_jsonl
from hfstack.data.sources import DataArgs
from hfstack.diagnosis.win_rate import (
    PairJudge,
    answer_statistics,
    judge_both_orders,
    judge_by_score,
    length_controlled_win_rate,
    load_and_answer,
    perplexity_of_answers,
    win_rate,
)
from hfstack.errors import ConfigError
from hfstack.evidence.score_judge import JudgeArgs, compare_with_people, load_endpoint_judge
from hfstack.logs import get_logger
from hfstack.runs.run import Run, RunArgs
from hfstack.tasks.causal_lm.sampling import SamplingArgs, check_sampling
from hfstack.tasks.rewards.reward_model import RewardModel
from hfstack.tasks.rl.demo_reward import obeys
from hfstack.tasks.rl.prompts import as_the_model_reads, load_prompts, read_chat
from hfstack.tokens.seams import opening_for

logger = get_logger(__name__)

# Used without --judge_url and --reward_model: any function (prompts, first, second) -> shares in
# [0, 1] by which first wins.
JUDGE = judge_by_score(obeys)


@dataclass
class WinRateArgs(SamplingArgs):
    """Whom to compare with, who judges, and how answers are generated."""

    reference_model: str | None = None
    """Model to compare with: a folder or a Hub id."""
    reward_model: str | None = None
    """Reward model that judges in place of JUDGE: a folder or a Hub id; the higher reward wins."""
    reward_as_text: bool | None = None
    """Give the reward model plain text; by default where it was trained so, as its run.json says.
    """
    as_chat: bool | None = None
    """Make each plain prompt the user's turn of a conversation; off, prompts are read as they are.
    By default as each of the models has learned, by its run.json, else on.
    """
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    batch_size: int = 16
    """Prompts per batch."""


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    win_args: WinRateArgs,
    judge_args: JudgeArgs,
    run_args: RunArgs,
) -> dict[str, float]:
    """Let both models answer, judge the answers and return the metrics."""
    check_sampling(max_new_tokens=win_args.max_new_tokens)
    if win_args.reference_model is None:
        raise ConfigError(
            "--reference_model is required: the model to compare with, such as runs/sft"
        )

    settings = (model_args, data_args, win_args, judge_args, run_args)
    with Run.start(__file__, run_args.output_dir, *settings) as run:
        # data
        names = (model_args.model_name_or_path, win_args.reference_model)
        splits = load_prompts(
            # nothing is trained on here, so that no row can have been seen
            replace(data_args, check_contamination=data_args.check_contamination or False),
            recipe="win_rate",
            as_chat=read_chat(names, win_args.as_chat),
            row_counts=run.record.rows,
            quarantine_file=run.output_dir / "quarantine.jsonl",
        )
        prompts = list(splits.get("eval", splits["train"])["prompt"])
        run.record_inputs(
            *names,
            win_args.reward_model,
            prompts=[*splits.inputs["train"], *splits.inputs["eval"]],
        )

        # models: both answer from the same seed; the reference stays, to measure perplexity
        endpoint = load_endpoint_judge(run, judge_args)
        judge = load_judge(win_args) if endpoint is None else endpoint.compare
        reference_args = replace(model_args, model_name_or_path=win_args.reference_model)
        asked, asked_there = (
            as_the_model_reads(prompts, args.model_name_or_path, as_chat=win_args.as_chat)
            for args in (model_args, reference_args)
        )
        answer = partial(
            load_and_answer,
            sampling=win_args,
            max_new_tokens=win_args.max_new_tokens,
            batch_size=win_args.batch_size,
            seed=run_args.seed,
        )
        ours = answer(model_args, asked)[-1]
        reference, tokenizer, ids, theirs = answer(reference_args, asked_there)

        # evaluate
        our_texts = [one.completion for one in ours]
        their_texts = [one.completion for one in theirs]
        judged = judge_both_orders(judge, asked, our_texts, their_texts)
        rate = win_rate(judged.shares)
        controlled = length_controlled_win_rate(
            judged.shares,
            list(map(len, our_texts)),
            list(map(len, their_texts)),
            seed=run_args.seed,
        )

        metrics: dict[str, float] = {"prompts": len(prompts)} | rate.named("win_rate")
        metrics |= controlled.named("win_rate_length_controlled") | judged.counts()
        for prefix, answers in {"": ours, "reference_": theirs}.items():
            metrics |= answer_statistics(answers, prefix=prefix)
            metrics[f"{prefix}perplexity_under_reference"] = perplexity_of_answers(
                reference,
                tokenizer,
                ids,
                answers,
                batch_size=win_args.batch_size,
                opening=opening_for(asked_there, tokenizer),
            )

        if endpoint is not None:
            metrics |= endpoint.metrics() | compare_with_people(endpoint, judge_args)

        # finish
        columns = ("prompt", "answer", "reference_answer", "share")
        with write_jsonl(run.output_dir / "answers.jsonl") as write_row:
            for row in zip(asked, our_texts, their_texts, judged.shares, strict=True):
                write_row(dict(zip(columns, row, strict=True)))
        run.add_artifact("answers", "answers.jsonl")
        logger.info("wins %s of %d prompts, at equal length %s", rate, len(prompts), controlled)
        return run.finish(metrics)


def load_judge(args: WinRateArgs) -> PairJudge:
    """Return the judge by the reward model that was named, or JUDGE."""
    if args.reward_model is None:
        return JUDGE
    model = RewardModel(args.reward_model, device=Accelerator().device, as_text=args.reward_as_text)
    return judge_by_score(model.score)


if __name__ == "__main__":
    command_line(main)
