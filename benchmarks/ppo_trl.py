"""TRL 1.12.0's PPO, the last that TRL shipped, on the toy of benchmarks/ppo.py, which runs this
file in TRL's own venv.

    <venv>/bin/python benchmarks/ppo_trl.py '{"model": "FOLDER", "rollouts": 20, "seed": 0, ...}'

Prints one JSON line. Gradient accumulation is off: with it, this trainer ignores `num_mini_batches`
(huggingface/trl #5645) and would take fewer optimizer steps."""

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
from trl.experimental.ppo import PPOConfig, PPOTrainer  # pyright: ignore[reportMissingImports]  # of TRL 1.12


def main(task: dict[str, Any]) -> dict[str, Any]:
    """Train on one thread and return CPU seconds, the curve, peak memory and, when asked for, the
    judgement.
    """
    torch.set_num_threads(1)
    set_seed(task["seed"])
    folder, long = Path(task["model"]), task["long"]
    model, tokenizer = load(folder)
    reference, _ = load(folder)
    value = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32
    )
    rows = prompts(2048, seed=1, long=long)
    rows = rows.map(
        lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]}, remove_columns=["prompt"]
    )
    curve, steps = Curve(), [0]

    class Watch(TrainerCallback):
        """Starts the clock and keeps what each rollout logged."""

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            curve.begin()

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            curve.add(
                episodes=logs["episode"], reward=logs["objective/scores"], kl=logs["objective/kl"]
            )

    with tempfile.TemporaryDirectory() as output_dir:
        settings = PPOConfig(
            output_dir=output_dir,
            per_device_train_batch_size=task["rollout"],
            gradient_accumulation_steps=1,
            num_mini_batches=task["mini_batches"],
            num_ppo_epochs=task["epochs"],
            response_length=ANSWER_TOKENS,
            total_episodes=task["rollout"] * task["rollouts"],
            stop_token="eos",
            temperature=1.0,
            kl_coef=0.05,
            vf_coef=0.1,
            learning_rate=task["learning_rate"],
            lr_scheduler_type="constant",
            missing_eos_penalty=1.0,
            num_sample_generations=0,
            local_rollout_forward_batch_size=task["rollout"],
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            eval_strategy="no",
            use_cpu=True,
            seed=task["seed"],
            disable_tqdm=True,
        )
        trainer = PPOTrainer(
            args=settings,
            processing_class=tokenizer,
            model=model,
            ref_model=reference,
            value_model=value,
            reward_model=rule_as_model(tokenizer, long=long),
            train_dataset=rows,
            eval_dataset=rows.select(range(8)),
            callbacks=[Watch()],
        )
        step = trainer.optimizer.step

        def counted(*args: Any, **kwargs: Any) -> Any:
            steps[0] += 1
            return step(*args, **kwargs)

        trainer.optimizer.step = counted
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
    found = {"cpu_s": curve.seconds(), "optimizer_steps": steps[0], "curve": curve.rows}
    found["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if task["judge"]:
        found |= judge(trainer.accelerator.unwrap_model(trainer.model).policy, folder, long=long)
    return found


def rule_as_model(tokenizer: Any, *, long: bool) -> nn.Module:
    """The rule in the shape that this trainer wants: a model with a backbone and a score, which
    reads token ids.

    It is given prompts and answers joined. Short prompts hold no word of praise or blame; long ones
    do, and end at their last colon."""

    class Backbone(nn.Module):
        def forward(self, input_ids: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
            texts = [
                tokenizer.decode(ids[kept], skip_special_tokens=True)
                for ids, kept in zip(input_ids, attention_mask.bool(), strict=True)
            ]
            answers = [text.rpartition(" :")[2] for text in texts] if long else texts
            scores = torch.tensor(reward(completions=answers))  # (B,)
            return types.SimpleNamespace(
                hidden_states=[scores[:, None, None].expand(-1, input_ids.shape[1], 1)]
            )

    class Rule(nn.Module):
        base_model_prefix = "model"

        def __init__(self) -> None:
            super().__init__()
            self.model = Backbone()
            self.score = nn.Identity()

    return Rule()


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
