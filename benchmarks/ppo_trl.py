"""Run TRL 1.12.0's PPO, TRL's last, on the toy of benchmarks/ppo.py.

ppo.py runs this file in TRL's own virtual environment:

    <venv>/bin/python benchmarks/ppo_trl.py '{"model": "FOLDER", "rollouts": 20, "seed": 0, ...}'

Prints one JSON line. Gradient accumulation is off: with it, this trainer ignores `num_mini_batches`
(huggingface/trl #5645) and would take fewer optimizer steps.

Legend: B completions, T tokens of the longest one.
"""

import contextlib
import io
import json
import os
import resource
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from ppo_toy import ANSWER_TOKENS, Curve, judge, load, prompts, reward
from torch import nn
from transformers import AutoModelForSequenceClassification, TrainerCallback, set_seed

# of TRL 1.12
from trl.experimental.ppo import PPOConfig, PPOTrainer  # pyright: ignore[reportMissingImports]


class CurveCallback(TrainerCallback):
    """Starts the clock and records what each rollout logs."""

    def __init__(self) -> None:
        self.curve = Curve()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.curve.begin()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Record a rollout."""
        self.curve.add(
            episodes=logs["episode"], reward=logs["objective/scores"], kl=logs["objective/kl"]
        )


def main(task: dict[str, Any]) -> dict[str, Any]:
    """Train on one thread; return CPU seconds, curve, peak memory and the judgement.

    The judgement is made when the task asks for it.
    """
    torch.set_num_threads(1)
    set_seed(task["seed"])
    folder, long = Path(task["model"]), task["long"]

    # models and prompts
    model, tokenizer = load(folder)
    reference, _ = load(folder)
    value = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, trust_remote_code=False
    )

    rows = prompts(2048, seed=1, long=long)
    rows = rows.map(
        lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]}, remove_columns=["prompt"]
    )

    with tempfile.TemporaryDirectory() as output_dir:
        watch = CurveCallback()
        trainer = PPOTrainer(
            args=make_settings(task, output_dir),
            processing_class=tokenizer,
            model=model,
            ref_model=reference,
            value_model=value,
            reward_model=rule_as_model(tokenizer, long=long),
            train_dataset=rows,
            eval_dataset=rows.select(range(8)),
            callbacks=[watch],
        )

        steps = count_steps(trainer)

        # It prints a table of samples for each log.
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()

    found = {
        "cpu_s": watch.curve.seconds(),
        "optimizer_steps": len(steps),
        "curve": watch.curve.rows,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }

    if task["judge"]:
        found |= judge(trainer.accelerator.unwrap_model(trainer.model).policy, folder, long=long)
    return found


def make_settings(task: dict[str, Any], output_dir: str) -> Any:
    """Return TRL's settings for a task of benchmarks/ppo.py."""
    return PPOConfig(
        # batches and length
        output_dir=output_dir,
        per_device_train_batch_size=task["rollout"],
        gradient_accumulation_steps=1,
        num_mini_batches=task["mini_batches"],
        num_ppo_epochs=task["epochs"],
        total_episodes=task["rollout"] * task["rollouts"],
        local_rollout_forward_batch_size=task["rollout"],
        # completions and their reward
        response_length=ANSWER_TOKENS,
        stop_token="eos",
        temperature=1.0,
        kl_coef=0.05,
        missing_eos_penalty=1.0,
        num_sample_generations=0,
        # updates
        vf_coef=0.1,
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        # machine and logs
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        seed=task["seed"],
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
    )


def count_steps(trainer: Any) -> list[None]:
    """Return a list that grows by one entry at each optimizer step."""
    steps: list[None] = []
    step = trainer.optimizer.step

    def counted(*args: Any, **kwargs: Any) -> Any:
        steps.append(None)
        return step(*args, **kwargs)

    trainer.optimizer.step = counted
    return steps


def rule_as_model(tokenizer: Any, *, long: bool) -> nn.Module:
    """Return the rule in the form that this trainer wants: backbone and score.

    It is given token ids of prompts joined with answers. Short prompts hold no word of praise or
    blame; long ones do, and end at their last colon.
    """

    class Backbone(nn.Module):
        def forward(self, input_ids: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
            texts = [
                tokenizer.decode(ids[kept], skip_special_tokens=True)
                for ids, kept in zip(input_ids, attention_mask.bool(), strict=True)
            ]

            answers = [text.rpartition(" :")[2] for text in texts] if long else texts
            scores = torch.tensor(reward(completions=answers))  # (B,)

            hidden = scores[:, None, None].expand(-1, input_ids.shape[1], 1)  # (B, T, 1)
            return types.SimpleNamespace(hidden_states=[hidden])

    class Rule(nn.Module):
        base_model_prefix = "model"

        def __init__(self) -> None:
            super().__init__()
            self.model = Backbone()
            self.score = nn.Identity()

    return Rule()


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
