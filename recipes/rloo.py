"""Train a model with RLOO: several answers a prompt, each compared with the rest.

    accelerate launch recipes/rloo.py --config recipes/rloo.yaml --model_name_or_path runs/sft
    hfstack run rloo --model_name_or_path runs/sft                      # the same, shorter

reads   rows with a column `prompt`; a fine-tuned model; a reward model or endpoint, unless REWARDS
below is used writes  the model (with LoRA its adapter), its tokenizer, checkpoints and run.json in
--output_dir
"""

from dataclasses import dataclass
from typing import Any

from trl import ModelConfig, RLOOConfig, RLOOTrainer, get_peft_config

from hfstack.config import command_line
from hfstack.data.sources import DataArgs, describe_sources
from hfstack.demo.rules import gold_score
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


def obeys(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Score by the demo's gold rule, 0 to 1: does the story obey the instruction?"""
    return [
        gold_score(text_of(prompt), text_of(answer))
        for prompt, answer in zip(prompts, completions, strict=True)
    ]


# Used when no --reward_model is given: functions (prompts, completions, **columns) -> list of
# numbers or None, RewardModel("path") and RemoteReward("https://...") in any mixture;
# --reward_weights gives each its weight.
REWARDS = [obeys]


@dataclass
class RlooArgs:
    """What RLOO needs beside the upstream settings."""

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
    model_args: ModelConfig, data_args: DataArgs, rloo_args: RlooArgs, training_args: RLOOConfig
) -> dict[str, float]:
    """Train, evaluate and save; return the metrics."""
    with Run.start(
        __file__, training_args.output_dir, model_args, data_args, rloo_args, training_args
    ) as run:
        checkpoint = run.resume_point()
        check_start(model_args.model_name_or_path)
        splits = load_prompts(
            data_args,
            recipe="rloo",
            as_chat=rloo_args.as_chat,
            quarantine_file=run.output_dir / "quarantine.jsonl",
        )

        run.record_inputs(
            model_args.model_name_or_path,
            rloo_args.reward_model,
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
            [rloo_args.reward_model] if rloo_args.reward_model else REWARDS,
            device=training_args.device,
            policy_tokenizer=tokenizer,
            weights=training_args.reward_weights,
            as_text=rloo_args.reward_as_text,
        )

        trainer = RLOOTrainer(
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
