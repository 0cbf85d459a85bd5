"""Train a model with PPO from rewards, with a critic and clipped updates.

    accelerate launch recipes/ppo.py --config recipes/ppo.yaml --model_name_or_path runs/sft
    hfstack run ppo --model_name_or_path runs/sft                       # the same, shorter

reads   rows with a column `prompt`; a fine-tuned model; a reward model or endpoint, unless REWARDS
below is used writes  the model (with LoRA its adapter), its critic, tokenizer, checkpoints, samples
and run.json in --output_dir
"""

from dataclasses import dataclass
from typing import Any

from trl import ModelConfig, get_peft_config

from hfstack.config import command_line
from hfstack.data.sources import DataArgs, describe_sources
from hfstack.demo.rules import gold_score
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.rewards.prepare import prepare_rewards
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.trainer import PPOTrainer
from hfstack.tasks.rl.prompts import (
    check_prompts,
    check_start,
    last_evaluation,
    load_prompts,
    summarize,
)
from hfstack.tokens.chat import text_of
from hfstack.training.callbacks import SampleTable
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
SHOWN = 8  # prompts whose answers are kept at each evaluation


@dataclass
class PpoArgs:
    """What PPO needs beside the trainer's settings."""

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
    model_args: ModelConfig, data_args: DataArgs, ppo_args: PpoArgs, training_args: PPOConfig
) -> dict[str, float]:
    """Train, evaluate and save; return the metrics."""
    with Run.start(
        __file__, training_args.output_dir, model_args, data_args, ppo_args, training_args
    ) as run:
        checkpoint = run.resume_point()
        check_start(model_args.model_name_or_path)
        splits = load_prompts(
            data_args,
            recipe="ppo",
            as_chat=ppo_args.as_chat,
            quarantine_file=run.output_dir / "quarantine.jsonl",
        )

        run.record_inputs(
            model_args.model_name_or_path,
            ppo_args.reward_model,
            training_args.critic_model,
            train=describe_sources(data_args.datasets),
            eval=describe_sources(data_args.eval_datasets),
        )

        run.add_artifact("samples", "samples.jsonl")

        tokenizer = load_tokenizer(model_args)
        model = load_causal_lm(model_args, tokenizer)
        lengths = {
            name: getattr(training_args, name)
            for name in ("max_completion_length", "max_prompt_length")
        }

        check_prompts(splits, tokenizer, model, **lengths)
        rewards = prepare_rewards(
            [ppo_args.reward_model] if ppo_args.reward_model else REWARDS,
            device=training_args.device,
            policy_tokenizer=tokenizer,
            weights=training_args.reward_weights,
            as_text=ppo_args.reward_as_text,
        )

        samples = SampleTable(
            run.output_dir / "samples.jsonl", lambda model: trainer.samples(SHOWN)
        )
        trainer = PPOTrainer(
            model=model,
            args=training_args,
            reward_funcs=rewards,
            train_dataset=splits["train"],
            eval_dataset=splits.get("eval"),
            processing_class=tokenizer,
            callbacks=[samples, *protect(run, push_checkpoints(training_args))],
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
