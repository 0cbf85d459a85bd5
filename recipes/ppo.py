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

from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.evidence.before_after import watch_change
from hfstack.models.loading import load_causal_lm
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.rl import online
from hfstack.tasks.rl.demo_reward import obeys
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.trainer import PPOTrainer
from hfstack.training.checkpointing import protect

REWARDS = [obeys]  # used when no --reward_model is given; what may be listed: docs/recipes/rloo.md


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
    online_args: online.OnlineArgs,
    reference_args: ReferenceArgs,
    training_args: PPOConfig,
) -> dict[str, float]:
    """Train policy and critic, evaluate and save; return the metrics."""
    settings = (model_args, data_args, online_args, reference_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        # prompts, policy and rewards
        parts = online.load_parts(
            run, model_args, data_args, online_args, training_args, rewards=REWARDS
        )

        reference = None
        if name := reference_args.reference_model:
            named = replace(model_args, model_name_or_path=name)
            reference = load_causal_lm(named, parts.tokenizer)
            run.record_inputs(name)

        # trainer: the critic is made from the policy, and so is the reference unless it was named
        trainer = PPOTrainer(
            model=parts.model,
            args=training_args,
            reference_model=reference,
            reward_funcs=parts.rewards,
            train_dataset=parts.splits["train"],
            eval_dataset=parts.splits.get("eval"),
            processing_class=parts.tokenizer,
            callbacks=[
                *online.policy_callbacks(run, lambda count: trainer.samples(count)),
                *protect(run, push_checkpoints(training_args)),
            ],
            peft_config=parts.adapter,
        )
        watch_change(run, online_args, trainer, parts.held_out, judge=parts.judge)

        # train, save and evaluate
        return run.finish(online.train_and_evaluate(run, trainer, parts), trainer)


if __name__ == "__main__":
    command_line(main)
