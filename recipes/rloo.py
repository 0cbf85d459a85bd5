"""Train a model with RLOO: several answers a prompt, each compared with the rest.

    accelerate launch recipes/rloo.py --config recipes/rloo.yaml --model_name_or_path runs/sft
    hfstack run rloo --model_name_or_path runs/sft                      # the same, shorter

The advantage of an answer is its reward minus the mean reward of the other answers to its prompt
(Ahmadian et al. 2024, arXiv:2402.14740). The KL to the starting model, times --kl_coef, is part of
the reward. The trainer is that of ppo without its critic, and so half its memory; grpo divides by
the spread of the group.

reads   rows with a column `prompt`; a fine-tuned model; a reward model or endpoint, unless
        REWARDS below is used
writes  the model or its adapter, tokenizer, checkpoints, samples and run.json in --output_dir
"""

from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.evidence.before_after import watch_change
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.rl import online
from hfstack.tasks.rl.demo_reward import obeys
from hfstack.tasks.rl.ppo.group_config import RLOOConfig

# Used when no --reward_model is given: functions (prompts, completions, **columns) -> list of
# numbers or None, RewardModel("path") and RemoteReward("https://...") in any mixture;
# --reward_weights gives each its weight.
REWARDS = [obeys]


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    online_args: online.OnlineArgs,
    training_args: RLOOConfig,
) -> dict[str, float]:
    """Train on groups of answers, evaluate and save; return the metrics."""
    settings = (model_args, data_args, online_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        # policy, its prompts and rewards
        parts = online.load_parts(run, *settings, rewards=REWARDS)

        # trainer: an answer is compared with the other answers to its prompt
        trainer = online.group_trainer(run, parts, training_args, push_checkpoints(training_args))
        watch_change(run, online_args, trainer, parts.held_out, judge=parts.judge)

        # train, save and evaluate
        return run.finish(online.train_and_evaluate(run, trainer, parts), trainer)


if __name__ == "__main__":
    command_line(main)
