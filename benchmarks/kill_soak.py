"""Kill training runs with SIGKILL, resume them, and compare with undisturbed ones.

    python benchmarks/kill_soak.py                                    # 60 kills over four recipes
    python benchmarks/kill_soak.py --recipes sft --kills 15 --seed 1

Each recipe trains a tiny model with dropout, shuffling, gradient accumulation, evaluations and a
checkpoint every second step, first undisturbed. Then the same command is started again and again
with `--resume_from_checkpoint last` and killed, half of the times at any moment and half while a
checkpoint is being written, until it has finished. The final weights must be equal in every bit,
and the log must hold the same losses, gradient norms, learning rates and evaluations at the same
steps, each once.

Importing the libraries takes many times longer than such a run, so they are imported once: every
start is a fork of that process, which then calls the recipe as its command line would. SIGKILL ends
it as it would end any process. What the page cache of the machine holds survives, so a power
failure is not part of this.
"""

import argparse
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from hfstack.config import command_line, parse
from hfstack.recipe_settings import load_recipe, settings_classes
from hfstack.runs.manifest import MANIFEST

ROOT = Path(__file__).parent.parent
# Clocks, and what is computed from them; everything else in the log must be equal.
CLOCKS = re.compile(r"(_runtime|_per_second|tokens_per_s|mfu|step_time)$|^time/")
Flags = dict[str, object]


@dataclass
class Outcome:
    """The result of one recipe's killed runs."""

    recipe: str
    runs: int = 0
    kills: int = 0
    while_saving: int = 0
    torn: int = 0
    differences: list[str] = field(default_factory=list)


def main() -> int:
    """Run the soak; return 0 when every run ended as it would have undisturbed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--kills", type=int, default=60, help="how many at least, over all recipes")
    parser.add_argument("--kills_per_run", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help="optimizer steps of a run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument(
        "--folder", type=Path, help="where to work; kept afterwards (default: a temporary one)"
    )
    args = parser.parse_args()

    folder = args.folder or Path(tempfile.mkdtemp(prefix="kill-soak-"))
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    inputs = make_inputs(folder / "inputs")

    print(f"{'recipe':<14}{'runs':>6}{'kills':>7}{'saving':>8}{'torn':>6}  outcome")
    outcomes = []
    kills = math.ceil(args.kills / len(args.recipes))
    for recipe in args.recipes:
        generator = random.Random(f"{args.seed} {recipe}")
        outcome = soak(recipe, RECIPES[recipe](inputs), folder / recipe, kills, generator, args)
        outcomes.append(outcome)
        result = "; ".join(outcome.differences) or "weights and log equal"
        print(
            f"{recipe:<14}{outcome.runs:>6}{outcome.kills:>7}{outcome.while_saving:>8}"
            f"{outcome.torn:>6}  {result}"
        )

    total = sum(outcome.kills for outcome in outcomes)
    torn = sum(outcome.torn for outcome in outcomes)
    failed = sum(len(outcome.differences) for outcome in outcomes)
    print(f"{total} kills, {torn} torn checkpoints set aside, {failed} runs that differ")

    if args.folder is None and not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


def soak(
    recipe: str,
    flags: Flags,
    folder: Path,
    kills: int,
    generator: random.Random,
    args: argparse.Namespace,
) -> Outcome:
    """Run one recipe undisturbed, then killed until `kills` are reached."""
    module = load_and_warm_up(recipe)
    flags = training_flags(flags, steps=args.steps)
    folder.mkdir(parents=True)

    # undisturbed
    undisturbed = folder / "undisturbed"
    began = time.monotonic()
    if wait(start(module, flags, undisturbed)) != 0:
        raise SystemExit(f"{recipe} fails undisturbed: {read_last_line(undisturbed)}")
    duration_s = time.monotonic() - began

    # killed
    outcome = Outcome(recipe)
    while outcome.kills < kills:
        killed = folder / f"killed-{outcome.runs}"
        log = killed.with_suffix(".log")
        limit = min(args.kills_per_run, kills - outcome.kills)
        kill_and_resume(module, flags, killed, duration_s, limit, generator, outcome)

        outcome.runs += 1
        outcome.torn += log.read_text(errors="replace").count(" is torn: ")
        found = compare(undisturbed, killed)
        outcome.differences += [f"run {outcome.runs}: {difference}" for difference in found]
        if not outcome.differences:
            shutil.rmtree(killed)
            log.unlink()

    return outcome


def training_flags(flags: Flags, *, steps: int) -> Flags:
    """Return the flags of a recipe with what all have in common: a short, eventful run."""
    common: Flags = {
        "max_steps": steps,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 2,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "logging_steps": 1,
        "report_to": "none",
        "bf16": "false",
        "dataloader_pin_memory": "false",
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "disable_tqdm": "true",
    }
    return {name: value for name, value in (common | flags).items() if value is not None}


def kill_and_resume(
    module: ModuleType,
    flags: Flags,
    out: Path,
    duration_s: float,
    kills: int,
    generator: random.Random,
    outcome: Outcome,
) -> None:
    """Start a run, kill it `kills` times, and let it finish."""
    for attempt in range(kills + 1):
        resume: Flags = {"resume_from_checkpoint": "last"} if attempt else {}
        process = start(module, flags | resume, out)

        # The last start is left alone.
        if attempt == kills:
            if wait(process) != 0:
                outcome.differences.append(f"ended with an error: {read_last_line(out)}")
            return

        if generator.random() < 0.5:
            was_killed = kill_while_saving(process, out, generator)
            outcome.while_saving += was_killed
        else:
            was_killed = kill_after(process, generator.uniform(0, duration_s))

        # It may have finished before.
        outcome.kills += was_killed
        if not was_killed:
            return


def kill_after(process: int, seconds: float) -> bool:
    """Kill a process after some seconds; return whether it was still there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ended(process):
            return False
        time.sleep(0.005)
    return kill(process)


def kill_while_saving(process: int, out: Path, generator: random.Random) -> bool:
    """Kill a process while it writes a checkpoint; return whether it was still there.

    It is killed after some of the time that a save takes.
    """
    known = {path.name for path in out.glob("checkpoint-*")}
    saves = generator.randint(1, 4)  # which of the saves to come

    while not ended(process):
        fresh = [path for path in out.glob("checkpoint-*") if path.name not in known]
        if fresh:
            known |= {path.name for path in fresh}
            saves -= 1
        if fresh and saves <= 0 and not (fresh[0] / MANIFEST).exists():
            time.sleep(generator.uniform(0, 0.03))
            return kill(process)
        time.sleep(0.001)

    return False


def kill(process: int) -> bool:
    """Send SIGKILL to a process, and return whether that is what ended it."""
    os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def ended(process: int) -> bool:
    """Return whether a child has ended by itself; it stays to be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait(process: int) -> int:
    """Wait for a child and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def start(module: ModuleType, flags: Flags, out: Path) -> int:
    """Fork a process that runs the recipe as its command line does, and return its id.

    What it writes goes to `<out>.log`.
    """
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process

    # in the child
    code = 1
    try:
        with out.with_suffix(".log").open("ab", buffering=0) as log:
            for stream in (sys.stdout.fileno(), sys.stderr.fileno()):
                os.dup2(log.fileno(), stream)

        sys.argv = [
            str(module.__file__),
            *(f"--{name}={value}" for name, value in flags.items()),
            f"--output_dir={out}",
        ]
        command_line(module.main)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # Nothing that the parent registered shall run here.
        os._exit(code)


def load_and_warm_up(recipe: str) -> ModuleType:
    """Import a recipe, and have its libraries import what they import late."""
    module = load_recipe(ROOT / "recipes" / f"{recipe}.py")
    parse(*settings_classes(module), argv=["--output_dir", "unused"])
    return module


def compare(undisturbed: Path, killed: Path, *, repeats: bool = False) -> list[str]:
    """Return how two finished runs differ: in weights, or in what they logged at a step.

    With `repeats` the killed one may have done its last evaluation again, with the same result.
    """
    files = sorted(path.name for path in undisturbed.glob("*.safetensors"))
    found = [] if files else ["no weights"]

    # weights
    for name in files:
        if not (killed / name).is_file():
            return [f"{name} is missing: {read_last_line(killed)}"]
        with safe_open(undisturbed / name, "pt") as one, safe_open(killed / name, "pt") as two:
            names = list(one.keys())
            unequal = [key for key in names if not one.get_tensor(key).equal(two.get_tensor(key))]
        if unequal:
            found.append(f"{name} differs in {len(unequal)} tensors")

    # log
    expected, logged = read_log(undisturbed), read_log(killed)
    while repeats and len(logged) > len(expected) and logged[-1] == logged[-2]:
        logged.pop()
    for old, new in itertools.zip_longest(expected, logged, fillvalue={}):
        if old != new:
            keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
            shown = ", ".join(f"{key} {old.get(key)} became {new.get(key)}" for key in keys[:4])
            found.append(f"the log differs at step {old.get('step')}: {shown}")
            break

    return found


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the log of a run, without clocks and the summary of the last process."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    kept = [entry for entry in history if "train_runtime" not in entry]
    return [
        {key: value for key, value in entry.items() if not CLOCKS.search(key)} for entry in kept
    ]


def read_last_line(out: Path) -> str:
    """Return the last line that a run wrote."""
    lines = out.with_suffix(".log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing was written"


def make_inputs(folder: Path) -> Path:
    """Write a tiny tokenizer, a tiny chat model with dropout, and rows of each form."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from hfstack.tokens.train_tokenizer import CHAT_TEMPLATE

    # rows
    words = ["fox", "owl", "hen", "cat", "river", "hill", "sun", "ball"]
    stories = [
        f"{i}: the {words[i % 8]} met the {words[(i * 3 + 1) % 8]} near the {words[i % 5 + 3]}."
        for i in range(80)
    ]

    # tokenizer
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        stories,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=special[0], pad_token=special[1]
    )
    tokenizer.chat_template = CHAT_TEMPLATE

    # models
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        tie_word_embeddings=True,
        attention_dropout=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")

    # files
    forms = {
        "text": [{"text": story} for story in stories * 4],
        "chat": [
            {"prompt": f"Who is number {i}?", "completion": f"The {words[i % 8]}."}
            for i in range(80)
        ],
        "pairs": [
            {
                "prompt": f"Tell of {i}: ",
                "chosen": f"a kind {words[i % 8]} was happy",
                "rejected": f"a ball {i % 9}",
            }
            for i in range(80)
        ],
    }
    for name, rows in forms.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    gpt2 = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 64,
        "n_positions": 128,
        "vocab_size": len(tokenizer),
    }
    (folder / "gpt2.json").write_text(json.dumps(gpt2))
    return folder


def pretrain_flags(inputs: Path) -> Flags:
    """Return the flags of a GPT-2 from scratch, with dropout everywhere."""
    return {
        "model_name_or_path": inputs / "gpt2.json",
        "tokenizer_name_or_path": inputs / "model",
        "datasets": inputs / "text.jsonl",
        "eval_fraction": 0.1,
        "block_size": 32,
        "per_device_train_batch_size": 4,
        "sample_tokens": 4,
        "warmup_steps": 2,
    }


def sft_flags(inputs: Path) -> Flags:
    """Return the flags of an adapter with dropout, on packed rows."""
    return {
        "model_name_or_path": inputs / "model",
        "datasets": inputs / "chat.jsonl",
        "eval_fraction": 0.1,
        "max_length": 64,
        "packing": "true",
        "per_device_train_batch_size": 2,
        "use_peft": "true",
        "lora_r": 4,
        "lora_dropout": 0.1,
        "lora_target_modules": "all-linear",
        "answer_tokens": 4,
        "activation_checkpointing": "false",
        "gradient_checkpointing": "false",
    }


def reward_flags(inputs: Path) -> Flags:
    """Return the flags of a reward head on a model with dropout."""
    return {
        "model_name_or_path": inputs / "model",
        "datasets": inputs / "pairs.jsonl",
        "eval_fraction": 0.1,
        "per_device_train_batch_size": 2,
        "center_rewards_coefficient": 0.01,
        "activation_checkpointing": "false",
        "gradient_checkpointing": "false",
    }


def pair_flags(inputs: Path) -> Flags:
    """Return the flags of an adapter that is aligned by pairs: DPO, ORPO, KTO."""
    own: Flags = {"packing": None, "answer_tokens": None, "datasets": inputs / "pairs.jsonl"}
    return sft_flags(inputs) | own


def ppo_flags(inputs: Path) -> Flags:
    """Return the flags of PPO with two optimizer steps a rollout.

    The policy is an adapter with dropout, the critic a model of its own, the reward a function.
    """
    return {
        "model_name_or_path": inputs / "model",
        "datasets": inputs / "chat.jsonl",
        "eval_fraction": 0.1,
        "as_chat": "false",
        "max_steps": None,
        "total_episodes": 64,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": 2,
        "num_ppo_epochs": 1,
        "max_completion_length": 6,
        "critic_warmup_rollouts": 0,
        "use_peft": "true",
        "lora_r": 4,
        "lora_dropout": 0.1,
        "lora_target_modules": "all-linear",
    }


RECIPES: dict[str, Callable[[Path], Flags]] = {
    "pretrain_clm": pretrain_flags,
    "sft": sft_flags,
    "reward": reward_flags,
    "dpo": pair_flags,
    "orpo": pair_flags,
    "kto": pair_flags,
    "ppo": ppo_flags,
}

if __name__ == "__main__":
    sys.exit(main())
