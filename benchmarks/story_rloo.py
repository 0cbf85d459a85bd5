"""Compare RLOO of the story with TRL's RLOOTrainer: CPU seconds of equal training.

    bash recipes/full_story.sh runs/story
    python benchmarks/story_rloo.py runs/story [--steps 22] [--seeds 0]

Both sides train the story's fine-tuned model against its reward model on its prompts, with the
settings of recipes/full_story.sh: 128 answers a rollout, 8 to a prompt, of up to 80 tokens, one
update a rollout. They run in turn, each in a process of its own on one thread; CPU seconds are
those of `train()` alone. Reward and KL are means of the last five rollouts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from result_file import markdown_table, save

SIDES = ("TRL's RLOO", "RLOO")
GROUP, ANSWERS, LONGEST, KL_WEIGHT = 8, 128, 80, 0.1
LAST = 5  # rollouts


def main() -> None:
    """Run the sides in turn, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("story", type=Path, help="folder of the story")
    parser.add_argument("--steps", type=int, default=22, help="rollouts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--worker", nargs=2, metavar=("SIDE", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        side, seed = arguments.worker
        print(json.dumps(train(side, arguments.story, arguments.steps, int(seed))))
        return

    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for seed in arguments.seeds:
        for side in SIDES:
            found[side].append(start(arguments, side, seed))

    print(write_table(found))
    save("story_rloo", {"steps": arguments.steps, "seeds": arguments.seeds}, found)


def write_table(found: dict[str, list[dict[str, float]]]) -> str:
    """Return a row for each turn and side."""
    rows = []
    for turn, base in enumerate(found[SIDES[0]]):
        for side in SIDES:
            row = found[side][turn]
            cells = [str(turn), side, f"{row['cpu_s']:.1f}", f"{row['cpu_s'] / base['cpu_s']:.2f}x"]
            cells += [f"{row['reward']:.2f}", f"{row['kl']:.2f}", f"{row['tokens']:.1f}"]
            rows.append(cells)
    heads = ["turn", "side", "CPU s", "of TRL's", "reward", "KL, nats", "tokens of an answer"]
    return markdown_table(heads, rows)


def start(arguments: argparse.Namespace, side: str, seed: int) -> dict[str, float]:
    """Run one side in a process of its own, and return what it found."""
    here = Path(__file__)
    argv = [sys.executable, str(here), str(arguments.story), "--steps", str(arguments.steps)]
    environment = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(here.parent.parent), *sys.path])),
    }
    done = subprocess.run(
        [*argv, "--worker", side, str(seed)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{side}: {done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def train(side: str, story: Path, steps: int, seed: int) -> dict[str, float]:
    """Train one side; return CPU seconds, and means of the last rollouts."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    torch.set_num_threads(1)
    set_seed(seed)
    lines = (story / "prompts" / "instructions.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [[{"role": "user", "content": json.loads(line)["prompt"]}] for line in lines]
    policy = str(story / "sft")

    with tempfile.TemporaryDirectory() as output_dir:
        given: dict[str, Any] = {
            "model": AutoModelForCausalLM.from_pretrained(policy, trust_remote_code=False),
            "processing_class": AutoTokenizer.from_pretrained(policy, trust_remote_code=False),
            "reward_funcs": [str(story / "reward")],
            "train_dataset": Dataset.from_dict({"prompt": asked}),
        }
        trainer = make_trainer(side, settings(output_dir, steps, seed), given)
        began = time.process_time()
        trainer.train()
        seconds = time.process_time() - began

    rows = [row for row in trainer.state.log_history if "reward" in row][-LAST:]
    per_token = statistics.mean(row["kl"] for row in rows)
    length = statistics.mean(row["completions/mean_length"] for row in rows)
    return {
        "cpu_s": seconds,
        "reward": statistics.mean(row["reward"] for row in rows),
        "kl": per_token * length,
        "tokens": length,
    }


def settings(output_dir: str, steps: int, seed: int) -> dict[str, Any]:
    """Return the settings that both sides share."""
    return {
        "output_dir": output_dir,
        "per_device_train_batch_size": ANSWERS,
        "gradient_accumulation_steps": 1,
        "num_generations": GROUP,
        "max_completion_length": LONGEST,
        "max_steps": steps,
        # the update
        "learning_rate": 6e-4,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 2,
        "max_grad_norm": 1.0,
        # machine and logs
        "bf16": False,
        "use_cpu": True,
        "seed": seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def make_trainer(side: str, shared: dict[str, Any], given: dict[str, Any]) -> Any:
    """Return the trainer of a side."""
    if side == SIDES[0]:
        from trl import RLOOConfig, RLOOTrainer

        theirs = {"beta": KL_WEIGHT, "gradient_checkpointing": False, "temperature": 1.0}
        return RLOOTrainer(args=RLOOConfig(**shared, **theirs), **given)

    from hfstack.tasks.rl.ppo.group_config import RLOOConfig as OurConfig
    from hfstack.tasks.rl.ppo.trainer import PPOTrainer

    ours = {"kl_coef": KL_WEIGHT, "missing_eos_penalty": None}
    return PPOTrainer(args=OurConfig(**shared, **ours), **given)


if __name__ == "__main__":
    main()
