"""Measure the CPU seconds from `sft`'s start to its first step on a tiny model.

    python benchmarks/start_up.py [--checkouts . ../older] [--repeats 5]

Of each checkout, in turn: `hfstack run sft`, and `python recipes/sft.py` without it. Both end at
the first step of the optimizer. Seconds are CPU seconds of the process that trains, in one thread;
that of `hfstack run` itself, which waits, adds 0.15.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from result_file import markdown_table, save

# imported by Python itself when it starts (site.py), and ends the process at the first step
_STOP = """
import os, sys, time
if "recipes/sft.py" in " ".join(sys.orig_argv):
    import importlib.abc

    def stop(*_):
        print("CPU", time.process_time(), len(sys.modules), file=sys.stderr, flush=True)
        os._exit(0)

    class Watch(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            # imported by every Trainer's optimizer, long after torch itself
            if name == "torch.optim.lr_scheduler":
                return None
            module = sys.modules.get("torch.optim.optimizer")
            if hasattr(module, "register_optimizer_step_post_hook"):
                sys.meta_path.remove(self)
                module.register_optimizer_step_post_hook(stop)
            return None

    sys.meta_path.insert(0, Watch())
"""


def write_inputs(folder: Path) -> list[str]:
    """Write a tiny model and 64 rows; return the flags of `sft` that use them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {token: index for index, token in enumerate(["<|end|>", "<|pad|>", *alphabet])}
    core = Tokenizer(models.BPE(vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>"
    )
    config = LlamaConfig(vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")

    rows = [{"prompt": f"{n} and 1?", "completion": f"It is {n + 1}."} for n in range(64)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = f"--model_name_or_path {folder}/model --datasets {folder}/rows.jsonl --max_steps 1"
    return [*flags.split(), *"--as_chat false --max_length 64 --bf16 false".split()]


def first_step(checkout: Path, start: list[str], flags: list[str]) -> tuple[float, int]:
    """Return CPU seconds and imported modules at the first step."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(_STOP)
        environment = os.environ | {
            "PYTHONPATH": f"{folder}:{checkout}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, *start, *flags, "--output_dir", f"{folder}/out"]
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
    found = [line for line in done.stderr.splitlines() if line.startswith("CPU ")]
    if not found:
        sys.exit(f"no step was taken: {done.stderr[-2000:]}")
    _, seconds, modules = found[-1].split()
    return float(seconds), int(modules)


def main() -> None:
    """Measure all sides in turn, and print and save the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkouts", type=Path, nargs="+", default=[Path(__file__).parents[1]])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    starts = {
        "hfstack run sft": ["-m", "hfstack.cli", "run", "sft", "--config", "recipes/sft.yaml"],
        "python recipes/sft.py": ["recipes/sft.py", "--config", "recipes/sft.yaml"],
    }

    figures: dict[str, dict[str, Any]] = {}
    runs: dict[str, list[tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        flags = write_inputs(Path(folder))
        for _ in range(arguments.repeats):
            for checkout in arguments.checkouts:
                for name, start in starts.items():
                    found = first_step(checkout.resolve(), start, flags)
                    runs.setdefault(f"{checkout.resolve().name}: {name}", []).append(found)

    for side, found in runs.items():
        seconds = statistics.median(one for one, _ in found)
        figures[side] = {"cpu_s": seconds, "modules": found[0][1], "runs": found}
    print(write_table(figures))
    save("start_up", vars(arguments), figures)


def write_table(figures: dict[str, dict[str, Any]]) -> str:
    """Return a row for each checkout and way to start."""
    rows = [[side, f"{one['cpu_s']:.2f}", f"{one['modules']:,}"] for side, one in figures.items()]
    return markdown_table(["side", "CPU s", "modules"], rows)


if __name__ == "__main__":
    main()
