"""Train a model with RLOO: several answers a prompt, each compared with the rest.

    accelerate launch recipes/rloo.py --config recipes/rloo.yaml --model_name_or_path runs/sft
    hfstack run rloo --model_name_or_path runs/sft                      # the same, shorter

The advantage of an answer is its reward minus the mean reward of the other answers to its prompt
(Ahmadian et al. 2024, arXiv:2402.14740). The KL to the starting model, times --beta, is part of the
reward. It needs no critic, and so half the memory of ppo; grpo divides by the spread of the group.

reads   rows with a column `prompt`; a fine-tuned model; a reward model or endpoint, unless
        REWARDS below is used
writes  the model (with LoRA its adapter), its tokenizer, checkpoints and run.json in --output_dir
"""

from functools import partial

from trl import ModelConfig, RLOOConfig, RLOOTrainer

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.models.adapters import new_adapter
from hfstack.models.loading import load_causal_lm
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.causal_lm.sampling import set_aside_settings
from hfstack.tasks.rl.demo_reward import obeys
from hfstack.tasks.rl.metrics import CompletionMetrics, StopWithoutSpread, evaluate_policy
from hfstack.tasks.rl.online import OnlineArgs, load_policy_and_rewards, load_recorded_prompts
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import checked
from hfstack.training.saving import save_trained

# Used when no --reward_model is given: functions (prompts, completions, **columns) -> list of
# numbers or None, RewardModel("path") and RemoteReward("https://...") in any mixture;
# --reward_weights gives each its weight.
REWARDS = [obeys]


def main(
    model_args: ModelConfig, data_args: DataArgs, online_args: OnlineArgs, training_args: RLOOConfig
) -> dict[str, float]:
    """Train on groups of answers, evaluate and save; return the metrics."""
    settings = (model_args, data_args, online_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        # data
        checkpoint = run.resume_point()
        splits = load_recorded_prompts(run, model_args, data_args, online_args)

        # model and rewards
        tokenizer, model, rewards, problems = load_policy_and_rewards(
            run, splits, model_args, online_args, REWARDS, training_args=training_args
        )

        # trainer
        trainer = RLOOTrainer(
            model=model,
            reward_funcs=rewards,
            args=training_args,
            train_dataset=splits["train"],
            eval_dataset=splits.get("eval"),
            processing_class=tokenizer,
            callbacks=[
                CompletionMetrics(),
                StopWithoutSpread(),
                *protect(run, push_checkpoints(training_args)),
            ],
            peft_config=new_adapter(model_args),
        )
        # answers are sampled by the options above, not by the model's generation_config
        with set_aside_settings(model):
            checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)
        save_trained(run, trainer, partial(load_causal_lm, tokenizer=tokenizer))

        # evaluate
        with set_aside_settings(model):
            metrics = evaluate_policy(trainer)
        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
