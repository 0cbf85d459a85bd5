"""Measure hfstack on one GPU, in parts of at most ten minutes.

    make gpu                                           # every part, and the tables
    python benchmarks/gpu.py --parts parity pretrain
    python benchmarks/gpu.py --device cpu --tiny       # the same code, at sizes for a test
    python benchmarks/gpu.py --table FILE.json ...     # the tables of docs/benchmarks.md

Each part runs in a process of its own and writes one file, runs/benchmarks/gpu_PART-TIME.json. A
part that fails or takes too long says so in its file, and the others run. Models have the shapes of
published ones and random weights, rows are random tokens: nothing is downloaded.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from result_file import save
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, set_seed

from hfstack.models.counting import flops_per_token, peak_flops_per_s
from hfstack.planning.measure import measure_step
from hfstack.planning.memory import TrainingStep, build_step_model, peak_memory, run_steps

LIMIT_S = 600
MIB = 2**20
Figures = list[dict[str, Any]]


def shape(size: str, *, tiny: bool) -> PreTrainedConfig:
    """Return the shape of a published model; with `tiny` two layers of it, 32 wide."""
    if size == "gpt2":
        return GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=258) if tiny else GPT2Config()
    hidden, layers, heads, keys, inner, vocabulary = {
        "125m": (768, 12, 12, 12, 2048, 32000),
        "1b": (2048, 16, 32, 8, 8192, 128256),  # Llama-3.2-1B
        "0.6b": (1024, 28, 16, 8, 3072, 151936),  # Qwen3-0.6B
        "0.5b": (896, 24, 14, 2, 4864, 151936),  # Qwen2.5-0.5B
    }[size]

    if tiny:
        hidden, layers, heads, keys, inner, vocabulary = 32, 2, 2, 2, 64, 258
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        intermediate_size=inner,
        max_position_embeddings=8192,
        tie_word_embeddings=size != "125m",
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )


def synchronize(device: str) -> None:
    """Wait for what the device was given to do."""
    if device != "cpu":
        torch.accelerator.synchronize()


def tests(device: str, *, tiny: bool) -> Figures:
    """Run the suite's tests that need a GPU; tiny: only collect them."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [*command, *(["--collect-only"] if tiny else [])],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    last = (done.stdout.strip().splitlines() or [done.stderr])[-1]
    counted = {kind: int(count) for count, kind in re.findall(r"(\d+)/?\d* (\w+)", last)}
    return [{"what": "tests marked gpu", "exit_code": done.returncode, "counted": counted}]


def parity(device: str, *, tiny: bool) -> Figures:
    """Compare the losses of fp32 training steps with those on the CPU, tf32 off."""
    torch.backends.cuda.matmul.allow_tf32 = False
    config, steps = shape("125m", tiny=tiny), 5
    losses: dict[str, list[float]] = {}
    for place in ("cpu", device):
        set_seed(0)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).to(place)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        generator = torch.Generator().manual_seed(0)
        found = losses[f"on {place}"] = []
        for _ in range(steps):
            ids = torch.randint(2, config.vocab_size, (2, 64), generator=generator).to(place)
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())

    pairs = zip(losses["on cpu"], losses[f"on {device}"], strict=True)
    return [{"what": "largest difference of a loss", "nats": max(abs(a - b) for a, b in pairs)}]


def train_rate(name: str, step: TrainingStep, config: PreTrainedConfig, device: str) -> dict:
    """Return tokens/s, model FLOPs utilization, and memory planned and reserved."""
    with torch.device(device):
        model = build_step_model(config, step)
    seconds, began = [], time.perf_counter()
    for _ in run_steps(model, step, steps=8):
        synchronize(device)
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()

    tokens = step.batch_size * step.sequence_length * step.accumulation
    rate = tokens / sorted(seconds[2:])[len(seconds[2:]) // 2]
    work = flops_per_token(config, step.sequence_length).train
    peak = peak_flops_per_s(device, torch.bfloat16 if step.bf16 else torch.float32)
    return {
        "what": name,
        "tokens_per_s": round(rate, 1),
        "mfu": round(rate * work / peak, 3),
    }


def pretrain(device: str, *, tiny: bool) -> Figures:
    """Measure pretraining at two sizes, bf16 autocast, fused loss."""
    found = []
    for size, rows, length in (("125m", 32, 1024), ("1b", 8, 2048)):
        step = TrainingStep(2, 32, bf16=True, fused_loss=True)
        if not tiny:
            step = TrainingStep(rows, length, bf16=True, fused_loss=True)
        found.append(train_rate(f"pretrain {size}", step, shape(size, tiny=tiny), device))
    return found


def sft(device: str, *, tiny: bool) -> Figures:
    """Measure fine-tuning of all weights at 8k, activations recomputed."""
    length = 64 if tiny else 8192
    step = TrainingStep(1, length, bf16=True, fused_loss=True, activation_checkpointing=True)
    return [train_rate("sft 0.6b, 8k", step, shape("0.6b", tiny=tiny), device)]


def plan(device: str, *, tiny: bool) -> Figures:
    """Compare the planned peak with what torch reserves, each in a fresh process."""
    found = []
    steps = {
        "125m, 32 x 1024": ("125m", TrainingStep(32, 1024, bf16=True, fused_loss=True)),
        "1b, 4 x 2048": ("1b", TrainingStep(4, 2048, bf16=True)),
        "0.6b, LoRA 16, 8 x 1024": ("0.6b", TrainingStep(8, 1024, bf16=True, lora_rank=16)),
        "0.5b, recomputed, 8 x 2048": (
            "0.5b",
            TrainingStep(8, 2048, bf16=True, activation_checkpointing=True),
        ),
    }
    # each is a process of its own, of which one is enough for a test
    for name, (size, step) in list(steps.items())[: 1 if tiny else None]:
        config = shape(size, tiny=tiny)
        if tiny:
            step = TrainingStep(2, 32, bf16=True)
        memory = peak_memory(config, step)
        measured = measure_step(config, step, device=device).peak_bytes or 0
        planned = memory.total + (0 if device == "cpu" else memory.rounding)
        found.append(
            {
                "what": name,
                "planned_mib": round(planned / MIB, 1),
                "measured_mib": round(measured / MIB, 1),
            }
        )
    return found


def rollouts(device: str, *, tiny: bool) -> Figures:
    """Measure sampling at GPT-2's shape in bf16: `generate`, the native engine, and its graphs."""
    from hfstack.tasks.rl.ppo.actor_critic import ActorCritic
    from hfstack.tasks.rl.ppo.engines.interface import SamplingSettings
    from hfstack.tasks.rl.ppo.engines.native import NativeEngine

    config, tokens = shape("gpt2", tiny=tiny), 8 if tiny else 256
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    model = model.to(device).eval()
    policy = ActorCritic(model, critic="none")
    # no token ends a completion, so that all have the same length
    settings = SamplingSettings(max_new_tokens=tokens, stop_token_ids=(), pad_token_id=1)

    def generate(rows: int) -> None:
        ids = torch.full((rows, 32), 7, device=device)  # (B, P)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=1,
        )

    def native(rows: int) -> None:
        NativeEngine(settings).generate(policy, [[7] * 32] * rows)

    engine = NativeEngine(settings, cuda_graphs=True)  # it keeps what it has captured

    def with_graphs(rows: int) -> None:
        engine.generate(policy, [[7] * 32] * rows)

    found = []
    sides: dict[str, Callable[[int], None]] = {
        "generate": generate,
        "native": native,
        "native, CUDA graphs": with_graphs,
    }
    for rows in (1, 8) if tiny else (1, 64):
        for name, run in sides.items():
            run(rows)  # warm
            synchronize(device)
            began = time.perf_counter()
            run(rows)
            synchronize(device)
            rate = rows * tokens / (time.perf_counter() - began)
            found.append({"what": f"{name}, batch {rows}", "tokens_per_s": round(rate, 1)})
    return found


def ppo(device: str, *, tiny: bool) -> Figures:
    """Measure episodes/s of PPO and RLOO: 256 answers of 239 tokens, at 0.5b."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from hfstack.tasks.rl.ppo.config import PPOConfig
    from hfstack.tasks.rl.ppo.trainer import PPOTrainer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|end|>", "<|pad|>", *alphabet])}
    core = Tokenizer(models.BPE(vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>"
    )

    rows, tokens, rollouts = (8, 6, 2) if tiny else (256, 239, 4)
    prompts = Dataset.from_dict({"prompt": ["Tell a story about a fox and an owl. "] * rows})

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [len(completion) / 100 for completion in completions]

    found = []
    for name, settings in {
        "ppo": {"critic": "shared"},
        "rloo": {"advantage": "rloo", "num_generations": 4},
    }.items():
        set_seed(0)
        model = AutoModelForCausalLM.from_config(shape("0.5b", tiny=tiny), trust_remote_code=False)
        with tempfile.TemporaryDirectory() as folder:
            args = PPOConfig(
                output_dir=folder,
                per_device_train_batch_size=rows,
                num_mini_batches=2 if tiny else 8,
                num_ppo_epochs=1,
                total_episodes=rows * rollouts,
                max_completion_length=tokens,
                # the same on every device
                use_cpu=device == "cpu",
                bf16=True,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                **settings,
            )

            trainer = PPOTrainer(
                model=model,
                args=args,
                reward_funcs=reward,
                train_dataset=prompts,
                processing_class=tokenizer,
            )
            began = time.perf_counter()
            trainer.train()
            synchronize(device)
        rate = rows * rollouts / (time.perf_counter() - began)
        found.append({"what": name, "episodes_per_s": round(rate, 2)})
    return found


PARTS: dict[str, Callable[..., Figures]] = {
    part.__name__: part for part in (tests, parity, pretrain, sft, plan, rollouts, ppo)
}


def write_table(results: list[dict[str, Any]]) -> str:
    """Return one table of saved parts: what, figure, on what."""
    lines = ["| part | what | figures | on | commit |", "|---|---|---|---|---|"]
    for result in results:
        part = result["benchmark"].removeprefix("gpu_")
        machine = ", ".join(result["machine"]["accelerators"]) or result["machine"]["cpu"]
        for one in result["figures"]:
            rest = {name: value for name, value in one.items() if name != "what"}
            figures = ", ".join(f"{name} {value}" for name, value in rest.items())
            commit = str(result["commit"])[:9] + (" (changed)" if result["dirty"] else "")
            lines.append(f"| {part} | {one['what']} | {figures} | {machine} | {commit} |")
    return "\n".join(lines) + "\n"


def run_part(part: str, arguments: argparse.Namespace) -> Path | None:
    """Run one part in a process of its own; return its file, None where it left none."""
    command = [sys.executable, __file__, "--part", part, "--device", arguments.device]
    command += ["--folder", str(arguments.folder), *(["--tiny"] if arguments.tiny else [])]
    before = set(arguments.folder.glob(f"gpu_{part}-*.json"))
    try:
        code = subprocess.run(command, check=False, timeout=LIMIT_S).returncode
        error = None if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        error = f"it took longer than {LIMIT_S} s"

    if error is not None:
        figures = [{"what": "it ended without figures", "error": error}]
        return save(f"gpu_{part}", vars(arguments), figures, folder=arguments.folder)
    return max(set(arguments.folder.glob(f"gpu_{part}-*.json")) - before)


def main() -> None:
    """Run the parts, or one of them in this process, or print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of the code itself")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--table", type=Path, nargs="+", help="files of parts that have run")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    if arguments.table:
        results = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.table]
        sys.stdout.write(write_table(results))
        return
    if arguments.device != "cpu" and not torch.cuda.is_available():
        sys.exit("no GPU is visible to torch; --device cpu --tiny tries the code without one")
    if arguments.part:
        figures = PARTS[arguments.part](arguments.device, tiny=arguments.tiny)
        save(f"gpu_{arguments.part}", vars(arguments), figures, folder=arguments.folder)
        return

    files = [run_part(part, arguments) for part in arguments.parts]
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files if file is not None]
    sys.stdout.write("\n" + write_table(results))


if __name__ == "__main__":
    main()
