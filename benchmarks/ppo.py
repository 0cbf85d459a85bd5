"""Compare PPO with TRL 1.12.0's: speed, what is reached, peak memory.

    python benchmarks/ppo.py speed [--repeats 3]      # episodes per CPU second and peak memory,
                                                      # short and long prompts
    python benchmarks/ppo.py quality [--seeds 0 1 2]  # J = reward - 0.05 KL on fresh prompts, and
                                                      # what a reward of 0.85 costs
    python benchmarks/ppo.py settings                 # the same with other optimizer settings: the
                                                      # reasons for the defaults
    python benchmarks/ppo.py groups [--seeds 0 1 2]   # RLOO and GRPO against those of the TRL that
                                                      # is installed (--epochs 1 --mini_batches 1:
                                                      # one update a rollout, as the recipes)
    python benchmarks/ppo.py prefill [--repeats 3]    # what reading a group's prompt once saves

1.12.0 is the last release of TRL with PPO. The toy is in benchmarks/ppo_toy.py: a Llama of 0.46 M
parameters, 128 episodes a rollout, 4 epochs of 4 mini-batches, answers of up to 40 tokens. All
sides have the same model, prompts, reward, learning rate and number of optimizer steps. "separate"
has TRL's architecture and optimizer settings (a second model as the critic, Adam's epsilon 1e-8, no
clipping); the others are what TRL has no setting for: the critic as a head on the policy's trunk,
the same without its gradient in the trunk, and LoRA adapters for policy and critic on one backbone.

TRL's side runs in a virtual environment of its own, which is made once under --cache with the same
versions of torch, transformers, accelerate and peft as here. Sides run in turn, on one thread, each
in a process of its own; CPU seconds are those of `train()` alone.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ppo_toy import (
    ANSWER_TOKENS,
    KL_WEIGHT,
    Curve,
    judge,
    load,
    make_models,
    prompts,
    reached,
    reward,
)

TRL = "TRL 1.12"
SIDES: dict[str, dict[str, Any]] = {
    TRL: {},
    "separate": {"critic": "separate", "adam_epsilon": 1e-8, "max_grad_norm": 0.0},
    "shared": {"critic": "shared", "critic_learning_rate": 1e-3},
    "shared, detached": {"critic": "shared", "critic_learning_rate": 1e-3, "detach_value": True},
    "adapter": {"critic": "adapter", "learning_rate": 1e-3},
}
# beside "separate" and "shared", which is what PPOConfig ships for its kind
SETTINGS: dict[str, dict[str, Any]] = {
    "separate, clipped at 10": {"critic": "separate"},  # what PPOConfig ships
    "separate, clipped at 1": {"critic": "separate", "max_grad_norm": 1.0},
    "separate, clipped at 1, eps 1e-5": {
        "critic": "separate",
        "max_grad_norm": 1.0,
        "adam_epsilon": 1e-5,
    },
    "separate, lambda 1": {"critic": "separate", "lam": 1.0},
    "shared, clipped at 1": {
        "critic": "shared",
        "critic_learning_rate": 1e-3,
        "max_grad_norm": 1.0,
    },
    "shared, one rate": {"critic": "shared", "critic_learning_rate": 1e-4},
}
# Eight answers to a prompt and no critic, with the ratio, the KL and the clipping of the gradient
# that TRL has, and with what our recipes ship.
GENERATIONS = 8
_AS_TRL = {"num_generations": GENERATIONS, "missing_eos_penalty": None, "max_grad_norm": 1.0}
GROUPS: dict[str, dict[str, Any]] = {
    "TRL's RLOO": {},
    "RLOO": _AS_TRL | {"advantage": "rloo", "importance_sampling_level": "completion"},
    "RLOO, ratio of a token": _AS_TRL | {"advantage": "rloo"},
    "TRL's GRPO": {},
    "GRPO": _AS_TRL | {"advantage": "grpo", "kl_estimator": "k3"},
}
# "all-linear" leaves the head out, without which the toy's policy learns half as much.
LORA_MODULES = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "lm_head",
]
ROLLOUT_EPISODES, MINI_BATCHES, EPOCHS, LEARNING_RATE = 128, 4, 4, 1e-4
LEVEL = 0.85
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t at 97.5 % for that many seeds
SAME_VERSIONS = ("transformers", "accelerate", "peft", "datasets", "tokenizers")


def main() -> None:
    """Prepare both sides, run what was asked for and print a table."""
    arguments = parse_arguments()
    if arguments.worker:
        print(json.dumps(train_ours(json.loads(arguments.worker))))
        return

    make_models(arguments.cache / "toy")
    if TRL in arguments.sides:
        make_environment(arguments.cache / "trl")
    compare = {"speed": compare_speed, "prefill": compare_prefill}
    print(compare.get(arguments.what, compare_quality)(arguments))


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line, with their defaults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["speed", "quality", "settings", "groups", "prefill"])
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    parser.add_argument(
        "--cache", type=Path, default=home / "hfstack" / "ppo_benchmark", help="venv and toy models"
    )

    parser.add_argument(
        "--sides",
        nargs="+",
        choices=[*SIDES, *SETTINGS, *GROUPS],
        help="default: all of what was asked for",
    )

    # what is run how often
    parser.add_argument("--repeats", type=int, default=3, help="of speed")
    parser.add_argument(
        "--prompts",
        nargs="+",
        default=["short", "long"],
        choices=["short", "long"],
        help="of speed",
    )

    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of quality")
    parser.add_argument(
        "--rollouts",
        type=int,
        help="default: 5 for speed on short prompts, 2 on long ones, 20 for quality",
    )

    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes over a rollout")
    parser.add_argument(
        "--mini_batches", type=int, default=MINI_BATCHES, help="updates in one pass"
    )

    parser.add_argument("--json", type=Path, help="file that gets a line for each run")
    parser.add_argument("--worker", help=argparse.SUPPRESS)

    arguments = parser.parse_args()
    if not arguments.sides and arguments.what == "settings":
        arguments.sides = ["separate", "shared", *SETTINGS]
    if not arguments.sides and arguments.what == "groups":
        arguments.sides = list(GROUPS)
    arguments.sides = arguments.sides or list(SIDES)

    return arguments


def compare_speed(arguments: argparse.Namespace) -> str:
    """Return a table of episodes per CPU second and peak memory, medians over repeats."""
    rows: dict[str, list[str]] = {side: [side] for side in arguments.sides}
    heads = ["side"]

    for kind in arguments.prompts:
        long = kind == "long"
        rollouts = arguments.rollouts or (2 if long else 5)
        rates: dict[str, list[float]] = {side: [] for side in arguments.sides}
        peaks: dict[str, list[float]] = {side: [] for side in arguments.sides}

        for repeat in range(arguments.repeats):
            for side in arguments.sides:
                found = start(
                    arguments, side, seed=repeat, long=long, rollouts=rollouts, judged=False
                )
                rates[side].append(rollouts * ROLLOUT_EPISODES / found["cpu_s"])
                peaks[side].append(found["peak_rss_mib"])

        for side, row in rows.items():
            row += [f"{statistics.median(rates[side]):.1f}", ratio(rates, side)]
            row += [f"{statistics.median(peaks[side]):.0f}", ratio(peaks, side)]

        heads += [f"{kind}, episodes/CPU s", f"of {TRL}", f"{kind}, peak RSS, MiB", f"of {TRL}"]

    return table(heads, list(rows.values()))


def compare_quality(arguments: argparse.Namespace) -> str:
    """Return a table of reward, exact KL and J over seeds, with 95 % intervals.

    It also says what it takes to reach the level.
    """
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in arguments.sides}
    for seed in arguments.seeds:
        for side in arguments.sides:
            rollouts = arguments.rollouts or 20
            found[side].append(
                start(arguments, side, seed=seed, long=False, rollouts=rollouts, judged=True)
            )

    rows = []
    for side, runs in found.items():
        arrivals = [reached(run["curve"], LEVEL) for run in runs]
        rows.append(
            [
                side,
                *(interval([run[name] for run in runs]) for name in ("reward", "kl", "J")),
                f"{max(run['kl'] for run in runs):.2f}",
                ", ".join("never" if one is None else f"{one['episodes']:.0f}" for one in arrivals),
                ", ".join("-" if one is None else f"{one['cpu_s']:.1f}" for one in arrivals),
                f"{statistics.median(run['cpu_s'] for run in runs):.1f}",
            ]
        )

    heads = ["side", "reward", "KL, nats", f"J = reward - {KL_WEIGHT} KL", "largest KL"]
    heads += [f"episodes to reward {LEVEL}", f"CPU s to reward {LEVEL}", "CPU s in all"]
    return table(heads, rows)


def compare_prefill(arguments: argparse.Namespace) -> str:
    """Return a table of CPU seconds that generating takes with and without shared prompts.

    16 groups of GENERATIONS answers to prompts of 140 to 160 tokens, against as many answers to
    different prompts of the same lengths; in turn, in this process.
    """
    import torch

    from hfstack.tasks.causal_lm.decoding.draw import SamplingSettings
    from hfstack.tasks.rl.ppo.actor_critic import ActorCritic
    from hfstack.tasks.rl.ppo.engines.native import NativeEngine

    torch.set_num_threads(1)
    model, tokenizer = load(arguments.cache / "toy" / "long")
    engine = NativeEngine(
        SamplingSettings(
            max_new_tokens=ANSWER_TOKENS,
            stop_token_ids=(tokenizer.eos_token_id,),
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    policy = ActorCritic(model, critic="none").eval()

    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {"groups": [], "different prompts": []}
    for _ in range(arguments.repeats):
        lengths = torch.randint(140, 161, (16,), generator=generator).tolist()
        for name, taken in seconds.items():
            asked = [
                torch.randint(2, 454, (length,), generator=generator).tolist()
                for length in lengths
                for _ in range(1 if name == "groups" else GENERATIONS)
            ]
            times = GENERATIONS if name == "groups" else 1
            began = time.process_time()
            engine.generate(policy, [one for one in asked for _ in range(times)])
            taken.append(time.process_time() - began)

    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    quicker = medians["different prompts"] / medians["groups"]
    rows = [[name, f"{median:.2f}"] for name, median in medians.items()]
    return table(["128 answers to", "CPU s"], [*rows, ["ratio", f"{quicker:.2f}x"]])


def start(
    arguments: argparse.Namespace, side: str, *, seed: int, long: bool, rollouts: int, judged: bool
) -> dict[str, Any]:
    """Run one side in a fresh process on one thread, and return its result."""
    task = {
        "model": str(arguments.cache / "toy" / ("long" if long else "short")),
        "long": long,
        "seed": seed,
        "rollouts": rollouts,
        "rollout": ROLLOUT_EPISODES,
        "mini_batches": arguments.mini_batches,
        "epochs": arguments.epochs,
        "learning_rate": LEARNING_RATE,
        "judge": judged,
        "side": side,
    }
    if arguments.what == "groups":
        task |= {"generations": GENERATIONS, "max_grad_norm": _AS_TRL["max_grad_norm"]}

    here = Path(__file__)
    argv = [sys.executable, str(here), arguments.what, "--worker", json.dumps(task)]
    environment = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CI": "1",
    }

    if side == TRL:
        python = arguments.cache / "trl" / "bin" / "python"
        argv = [str(python), str(here.with_name("ppo_trl.py")), json.dumps(task)]
    elif side.startswith("TRL's"):
        argv = [sys.executable, str(here.with_name("ppo_trl_groups.py")), json.dumps(task)]
    else:
        paths = [str(here.parent.parent), os.environ.get("PYTHONPATH")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

    done = subprocess.run(
        argv, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{side}: {done.stderr[-4000:]}")

    found = json.loads(done.stdout.splitlines()[-1])
    steps = rollouts * arguments.mini_batches * arguments.epochs
    assert found["optimizer_steps"] == steps, (
        f"{side} took {found['optimizer_steps']} optimizer steps, not {steps}"
    )

    if arguments.json:
        with arguments.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(task | found) + "\n")

    return found


def train_ours(task: dict[str, Any]) -> dict[str, Any]:
    """Train one of our sides; return CPU seconds, curve, memory and the judgement.

    The judgement is made when the task asks for it.
    """
    import torch
    from peft import LoraConfig
    from transformers import TrainerCallback, set_seed

    from hfstack.tasks.rl.ppo.trainer import PPOTrainer

    torch.set_num_threads(1)
    set_seed(task["seed"])
    folder, long = Path(task["model"]), task["long"]
    model, tokenizer = load(folder)
    own = {"learning_rate": task["learning_rate"]} | (SIDES | SETTINGS | GROUPS)[task["side"]]

    peft_config = None
    if own.get("critic") == "adapter":
        peft_config = LoraConfig(
            r=16, lora_alpha=16, target_modules=LORA_MODULES, task_type="CAUSAL_LM"
        )

    curve = Curve()

    class CurveCallback(TrainerCallback):
        """Starts the clock and records what each rollout logs."""

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            curve.begin()

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            if "reward" in logs:
                updates = task["mini_batches"] * task["epochs"]  # of a rollout
                episodes = state.global_step // updates * task["rollout"]
                curve.add(episodes=episodes, reward=logs["reward"], kl=logs["kl_per_completion"])

    with tempfile.TemporaryDirectory() as output_dir:
        trainer = PPOTrainer(
            model=model,
            reward_funcs=[reward],
            args=make_settings(task, own, output_dir),
            train_dataset=prompts(2048, seed=1, long=long),
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=[CurveCallback()],
        )

        trainer.train()

    found = {
        "cpu_s": curve.seconds(),
        "optimizer_steps": trainer.state.global_step,
        "curve": curve.rows,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }

    if task["judge"]:
        found |= judge(trainer.accelerator.unwrap_model(trainer.model).policy, folder, long=long)
    return found


def make_settings(task: dict[str, Any], own: dict[str, Any], output_dir: str) -> Any:
    """Return our settings for a task; `own` are those of its side."""
    from hfstack.tasks.rl.ppo.config import PPOConfig

    settings: dict[str, Any] = {
        # batches and length
        "output_dir": output_dir,
        "per_device_train_batch_size": task["rollout"] // task["mini_batches"],
        "gradient_accumulation_steps": 1,
        "num_mini_batches": task["mini_batches"],
        "num_ppo_epochs": task["epochs"],
        "total_episodes": task["rollout"] * task["rollouts"],
        # completions and their reward
        "max_completion_length": ANSWER_TOKENS,
        "temperature": 1.0,
        "kl_coef": KL_WEIGHT,
        "missing_eos_penalty": 1.0,
        # updates
        "lr_scheduler_type": "constant",
        # machine and logs
        "bf16": False,
        "use_cpu": True,
        "seed": task["seed"],
        "report_to": "none",
        "logging_steps": task["epochs"] * task["mini_batches"],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return PPOConfig(**(settings | own))


def make_environment(folder: Path) -> None:
    """Make a virtual environment with TRL 1.12.0, once.

    The other versions are those that are installed here.
    """
    wanted = ["trl==1.12.0"] + [f"{name}=={version(name)}" for name in SAME_VERSIONS]
    torch = f"torch=={version('torch').partition('+')[0]}"
    stamp = folder / "installed.json"
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == [torch, *wanted]:
        return

    print(f"installing {' '.join([torch, *wanted])} into {folder}", file=sys.stderr)
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]

    # torch first: pip then keeps that build, such as one without CUDA
    for packages in ([torch], wanted):
        subprocess.run([*pip, *packages], check=True)
    stamp.write_text(json.dumps([torch, *wanted]), encoding="utf-8")


def ratio(values: dict[str, list[float]], side: str) -> str:
    """Return the median of a side over TRL's, as text."""
    if TRL not in values:
        return "-"
    return f"{statistics.median(values[side]) / statistics.median(values[TRL]):.2f}x"


def interval(values: list[float]) -> str:
    """Return the mean over seeds with its 95 % interval by Student's t, as text."""
    mean = statistics.mean(values)
    if len(values) not in T_95:
        return f"{mean:.3f}"
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
