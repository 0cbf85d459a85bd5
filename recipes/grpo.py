"""Train a model with GRPO on rewards that can be checked, such as right answers.

    accelerate launch recipes/grpo.py --config recipes/grpo.yaml --learning_rate 1e-6
    hfstack run grpo --learning_rate 1e-6                               # the same, shorter

reads   rows with a column `prompt` and what the rewards below read (`answer`); a model; or a reward
model or endpoint writes  the model (with LoRA its adapter), its tokenizer, checkpoints and run.json
in --output_dir
"""

import re
from dataclasses import dataclass
from typing import Any

from trl import GRPOConfig, GRPOTrainer, ModelConfig, get_peft_config

from hfstack.config import command_line
from hfstack.data.sources import DataArgs, describe_sources
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.rewards.prepare import prepare_rewards
from hfstack.tasks.rl.prompts import (
    CompletionMetrics,
    check_groups,
    check_policy,
    check_prompts,
    check_start,
    last_evaluation,
    load_prompts,
    summarize,
)
from hfstack.tokens.chat import text_of
from hfstack.training.checkpointing import protect

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact_answer(
    prompts: list[Any], completions: list[Any], answer: list[str], **columns: Any
) -> list[float | None]:
    """1 when the last number of the completion is the last of the column `answer`.

    None where that holds no number.
    """
    return [
        float(last_number(text_of(completion)) == last_number(text))
        if last_number(text) is not None
        else None
        for completion, text in zip(completions, answer, strict=True)
    ]


def well_formed(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Return 1 when the completion ends with `#### <number>`, as GSM8K's answers do."""
    return [
        float(re.search(r"\n#### -?[\d,.]+\s*$", text_of(completion)) is not None)
        for completion in completions
    ]


def last_number(text: str) -> float | None:
    """The last number of a text; thousands may be separated by commas."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


# Used when no --reward_model is given; edit it. --reward_weights gives each its weight.
REWARDS = [exact_answer, well_formed]


@dataclass
class GrpoArgs:
    """What GRPO needs beside the upstream settings."""

    reward_model: str | None = None
    """Reward model in place of REWARDS: a folder or Hub id, or the http(s) URL of an endpoint; ""
    for REWARDS.
    """
    reward_as_text: bool = False
    """Give the reward model prompt and answer as plain text, because it was trained on plain pairs.
    """
    as_chat: bool = True
    """Make each plain prompt the user's turn of a conversation, as sft does; off, prompts are read
    as they are.
    """


def main(
    model_args: ModelConfig, data_args: DataArgs, grpo_args: GrpoArgs, training_args: GRPOConfig
) -> dict[str, float]:
    """Train, evaluate and save; return the metrics."""
    with Run.start(
        __file__, training_args.output_dir, model_args, data_args, grpo_args, training_args
    ) as run:
        checkpoint = run.resume_point()
        check_start(model_args.model_name_or_path)
        splits = load_prompts(
            data_args,
            recipe="grpo",
            as_chat=grpo_args.as_chat,
            quarantine_file=run.output_dir / "quarantine.jsonl",
        )

        run.record_inputs(
            model_args.model_name_or_path,
            grpo_args.reward_model,
            train=describe_sources(data_args.datasets),
            eval=describe_sources(data_args.eval_datasets),
        )

        check_groups(splits, training_args)

        tokenizer = load_tokenizer(model_args)
        model = load_causal_lm(model_args, tokenizer)
        check_policy(model, tokenizer, model_args.model_name_or_path)
        check_prompts(
            splits, tokenizer, model, max_completion_length=training_args.max_completion_length
        )

        rewards = prepare_rewards(
            [grpo_args.reward_model] if grpo_args.reward_model else REWARDS,
            device=training_args.device,
            policy_tokenizer=tokenizer,
            weights=training_args.reward_weights,
            as_text=grpo_args.reward_as_text,
        )

        trainer = GRPOTrainer(
            model=model,
            reward_funcs=rewards,
            args=training_args,
            train_dataset=splits["train"],
            eval_dataset=splits.get("eval"),
            processing_class=tokenizer,
            callbacks=[CompletionMetrics(), *protect(run, push_checkpoints(training_args))],
            peft_config=get_peft_config(model_args),
        )

        trainer.train(resume_from_checkpoint=checkpoint)
        history, steps = trainer.state.log_history, trainer.state.global_step
        metrics = summarize(history) | {"steps": steps}

        if "eval" in splits:
            metrics |= last_evaluation(history, steps) or trainer.evaluate()
        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
