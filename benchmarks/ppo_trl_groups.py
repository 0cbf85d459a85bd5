"""Run the RLOO and GRPO of the installed TRL on the toy of benchmarks/ppo.py.

ppo.py starts this file:

    python benchmarks/ppo_trl_groups.py '{"side": "TRL's RLOO", "model": "FOLDER", ...}'

Prints one JSON line. Unlike TRL's PPO these two are in the TRL that is installed here, so that both
sides have the same environment.
"""

import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from ppo_toy import ANSWER_TOKENS, KL_WEIGHT, Curve, judge, load, prompts, reward
from transformers import TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer


class CurveCallback(TrainerCallback):
    """Starts the clock and records what each rollout logs."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.curve = Curve()
        self.steps = task["mini_batches"] * task["epochs"]  # of a rollout
        self.episodes = task["rollout"]

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.curve.begin()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Record a rollout; its KL is per token."""
        if "reward" in logs:
            kl = logs["kl"] * logs["completions/mean_length"]
            episodes = state.global_step // self.steps * self.episodes
            self.curve.add(episodes=episodes, reward=logs["reward"], kl=kl)


def main(task: dict[str, Any]) -> dict[str, Any]:
    """Train on one thread; return CPU seconds, curve, peak memory and the judgement.

    The judgement is made when the task asks for it.
    """
    torch.set_num_threads(1)
    set_seed(task["seed"])
    folder, long = Path(task["model"]), task["long"]
    model, tokenizer = load(folder)
    watch = CurveCallback(task)

    with tempfile.TemporaryDirectory() as output_dir:
        given: dict[str, Any] = {
            "model": model,
            "reward_funcs": [reward],
            "train_dataset": prompts(2048, seed=1, long=long),
            "processing_class": tokenizer,
            "callbacks": [watch],
        }
        shared = make_settings(task, output_dir)
        trainer: Any
        if task["side"].endswith("RLOO"):
            trainer = RLOOTrainer(args=RLOOConfig(**shared), **given)
        else:
            # a mean over answers of the mean over their tokens, as in the paper
            trainer = GRPOTrainer(args=GRPOConfig(**shared, loss_type="grpo"), **given)
        trainer.train()

    found = {
        "cpu_s": watch.curve.seconds(),
        "optimizer_steps": trainer.state.global_step,
        "curve": watch.curve.rows,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if task["judge"]:
        found |= judge(trainer.accelerator.unwrap_model(trainer.model), folder, long=long)
    return found


def make_settings(task: dict[str, Any], output_dir: str) -> dict[str, Any]:
    """Return the settings that both trainers have, for a task of benchmarks/ppo.py."""
    steps = task["mini_batches"] * task["epochs"]
    return {
        # batches and length
        "output_dir": output_dir,
        "per_device_train_batch_size": task["rollout"] // task["mini_batches"],
        "gradient_accumulation_steps": 1,
        "steps_per_generation": task["mini_batches"],
        "num_iterations": task["epochs"],
        "num_generations": task["generations"],
        "max_steps": steps * task["rollouts"],
        # completions and their reward
        "max_completion_length": ANSWER_TOKENS,
        "temperature": 1.0,
        "beta": KL_WEIGHT,
        # updates
        "learning_rate": task["learning_rate"],
        "lr_scheduler_type": "constant",
        "max_grad_norm": task["max_grad_norm"],
        "disable_dropout": True,
        # machine and logs
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "seed": task["seed"],
        "report_to": "none",
        "logging_steps": steps,
        "save_strategy": "no",
        "disable_tqdm": True,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
