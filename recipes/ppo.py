"""Train a model with PPO from rewards, with a critic and clipped updates.

    accelerate launch recipes/ppo.py --config recipes/ppo.yaml --model_name_or_path runs/sft
    hfstack run ppo --model_name_or_path runs/sft                       # the same, shorter

The policy generates answers, a critic values each of their tokens, and small clipped updates follow
(Schulman et al. 2017, arXiv:1707.06347; docs/ppo_details.md names every detail). It holds policy,
critic and reference in memory; with --use_peft they share one model.

reads   rows with a column `prompt`; a fine-tuned model; a reward model or endpoint, unless
        REWARDS below is used
writes  the model (with LoRA its adapter), its critic, tokenizer, checkpoints, samples and
        run.json in --output_dir
"""

from dataclasses import dataclass, replace
from functools import partial

from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.models.adapters import new_adapter
from hfstack.models.loading import load_causal_lm
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.rewards.prepare import reward_folders
from hfstack.tasks.rl.demo_reward import obeys
from hfstack.tasks.rl.metrics import StopWithoutSpread, evaluate_policy
from hfstack.tasks.rl.online import (
    OnlineArgs,
    load_recorded_prompts,
    load_recorded_tokenizer,
    load_rewards,
)
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.trainer import PPOTrainer
from hfstack.tasks.rl.prompts import prompt_problems
from hfstack.training.callbacks import SampleTable
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import checked
from hfstack.training.saving import save_trained

REWARDS = [obeys]  # used when no --reward_model is given; what may be listed: docs/recipes/rloo.md
SHOWN = 8  # prompts whose answers are kept at each evaluation


@dataclass
class ReferenceArgs:
    """What the KL is measured to."""

    reference_model: str | None = None
    """Model that the policy is kept near: a folder or a Hub id; by default the policy as it starts.
    Rounds of feedback name the first policy, so that the KL of all rounds is one.
    """


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    online_args: OnlineArgs,
    reference_args: ReferenceArgs,
    training_args: PPOConfig,
) -> dict[str, float]:
    """Train policy and critic, evaluate and save; return the metrics."""
    settings = (model_args, data_args, online_args, reference_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        # data
        checkpoint = run.resume_point()
        splits = load_recorded_prompts(
            run, model_args, data_args, online_args, critic_model=training_args.critic_model
        )

        # model
        tokenizer = load_recorded_tokenizer(run, splits, model_args)
        model = load_causal_lm(model_args, tokenizer)
        reference = None
        if name := reference_args.reference_model:
            reference = load_causal_lm(replace(model_args, model_name_or_path=name), tokenizer)
            run.record_inputs(name)

        problems = prompt_problems(
            splits,
            tokenizer,
            model,
            max_completion_length=training_args.max_completion_length,
            max_prompt_length=training_args.max_prompt_length,
        )

        # rewards
        run.record_inputs(*reward_folders(REWARDS))
        rewards = load_rewards(
            online_args,
            REWARDS,
            tokenizer,
            device=training_args.device,
            weights=training_args.reward_weights,
        )

        # trainer: the critic is made from the policy, and so is the reference unless it was named
        run.add_artifact("samples", "samples.jsonl")
        samples = SampleTable(
            run.output_dir / "samples.jsonl", lambda model: trainer.samples(SHOWN)
        )

        trainer = PPOTrainer(
            model=model,
            args=training_args,
            reference_model=reference,
            reward_funcs=rewards,
            train_dataset=splits["train"],
            eval_dataset=splits.get("eval"),
            processing_class=tokenizer,
            callbacks=[
                samples,
                StopWithoutSpread(),
                *protect(run, push_checkpoints(training_args)),
            ],
            peft_config=new_adapter(model_args, model),
        )
        checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)
        save_trained(run, trainer, partial(load_causal_lm, tokenizer=tokenizer))

        # evaluate
        return run.finish(evaluate_policy(trainer), trainer)


if __name__ == "__main__":
    command_line(main)
