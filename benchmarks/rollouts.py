"""Compare rollouts with those of generate and TRL: CPU seconds of each.

    python benchmarks/rollouts.py [--model recipes/architectures/llama-1m.json] [--repeats 5]
    python benchmarks/rollouts.py --sides "generate, 16 at once" "recipes, 16 at once"

The model has random weights, in fp32. Its answers end by themselves: a share of the vocabulary ends
an answer, so that lengths are spread as a policy's are; in the last load none ends. `generate` and
ours read token ids and return them; TRL's is GRPOTrainer's own generation without vLLM, which pads,
generates and masks. Ours returns the log-probabilities of the sampled tokens as well. "16 at once"
is how recipes that generate from files of prompts (generate, preferences, win_rate) went, batch by
batch, and how they go, with the probe of the model that comes before it. One thread, the sides in
turn in this process, medians of CPU seconds.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from result_file import markdown_table, save

ROOT = Path(__file__).resolve().parent.parent
GROUP = 8


class Load(NamedTuple):
    """A set of prompts and how long their answers are."""

    prompts: int  # different ones
    answers: int  # to each
    prompt_tokens: tuple[int, int]  # from, to
    longest: int  # tokens of an answer at most
    mean: int | None  # tokens of an answer on average, were there no limit; None: none ends


LOADS = {
    "short answers": Load(128, 1, (8, 24), 32, 16),
    "long answers": Load(64, 1, (8, 24), 256, 64),
    "groups of 8, prompts of 8 to 24 tokens": Load(16, GROUP, (8, 24), 64, 32),
    "groups of 8, prompts of 120 to 160 tokens": Load(16, GROUP, (120, 160), 32, 16),
    "32 answers of 60 tokens, none ends": Load(32, 1, (12, 12), 60, None),
}
AT_ONCE = 16
SIDES: tuple[str, ...] = (
    "generate",
    "TRL's",
    "ours",
    "generate, 16 at once",
    "recipes, 16 at once",
)
Prompts = list[list[int]]
Side = Callable[[Prompts], int]  # returns the tokens of the answers


def main() -> None:
    """Run all sides on each load in turn, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = ROOT / "recipes" / "architectures" / "llama-1m.json"
    parser.add_argument("--model", type=Path, default=default, help="a configuration")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    figures = {
        name: compare(arguments.model, load, arguments.sides, repeats=arguments.repeats)
        for name, load in LOADS.items()
    }
    print(write_table(figures))
    save("rollouts", {"model": str(arguments.model), "repeats": arguments.repeats}, figures)


def write_table(figures: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return a row for each load and side; ratios are to the first side.

    Each side draws its own answers, whose lengths differ by chance: the last column is of CPU
    seconds for each token of an answer.
    """
    rows, first = [], next(iter(next(iter(figures.values()))))
    for load, found in figures.items():
        base = found[first]
        for side, row in found.items():
            each = base["cpu_s"] / base["tokens"] * row["tokens"] / row["cpu_s"]
            cells = [load, side, f"{row['cpu_s']:.2f}", f"{row['tokens']:,.0f}"]
            rows.append([*cells, f"{base['cpu_s'] / row['cpu_s']:.2f}x", f"{each:.2f}x"])
    return markdown_table(["load", "side", "CPU s", "tokens", f"of {first}", "a token"], rows)


def compare(
    architecture: Path, load: Load, names: Sequence[str], *, repeats: int
) -> dict[str, dict[str, Any]]:
    """Return the medians of CPU seconds and answer tokens of each side."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(architecture, trust_remote_code=False)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()
    ends = 0 if load.mean is None else round(config.vocab_size / load.mean)
    stops = list(range(1, 1 + ends)) or [config.vocab_size]  # a token that there is not

    first = 1 + len(stops)  # prompts hold neither the padding nor an end
    makers = (by_generate, by_trl, by_ours, by_batches, by_recipes)
    makers_of: dict[str, Any] = dict(zip(SIDES, makers, strict=True))
    sides = {name: makers_of[name](model, load, stops) for name in names}

    measured: dict[str, dict[str, list[float]]] = {
        side: {"cpu_s": [], "tokens": []} for side in sides
    }
    for repeat in range(repeats + 1):  # the first is to warm up
        prompts = draw_prompts(load, first, config.vocab_size, seed=repeat)
        for side, run in sides.items():
            torch.manual_seed(repeat)
            began = time.process_time()
            tokens = run(prompts)
            taken = time.process_time() - began
            if repeat:
                measured[side]["cpu_s"].append(taken)
                measured[side]["tokens"].append(tokens)

    return {
        side: {name: statistics.median(values) for name, values in rows.items()} | {"all": rows}
        for side, rows in measured.items()
    }


def draw_prompts(load: Load, first: int, vocabulary: int, *, seed: int) -> Prompts:
    """Return random prompts, each as often as it is answered."""
    generator = torch.Generator().manual_seed(seed)
    shortest, longest = load.prompt_tokens
    lengths = torch.randint(shortest, longest + 1, (load.prompts,), generator=generator).tolist()
    drawn = [torch.randint(first, vocabulary, (n,), generator=generator).tolist() for n in lengths]
    return [prompt for prompt in drawn for _ in range(load.answers)]


def by_generate(model: Any, load: Load, stops: list[int]) -> Side:
    """Return what generates by transformers, padded on the left."""
    from hfstack.tasks.causal_lm.decoding.decode import pad_left
    from hfstack.tasks.causal_lm.sampling import generation_settings

    settings = generation_settings(
        max_new_tokens=load.longest, temperature=1.0, end_ids=stops, pad_id=0
    )

    def run(prompts: Prompts) -> int:
        tokens, mask = pad_left(prompts, 0)
        whole = model.generate(input_ids=tokens, attention_mask=mask, generation_config=settings)
        return int((whole[:, tokens.shape[1] :] != 0).sum())

    return run


def by_trl(model: Any, load: Load, stops: list[int]) -> Side:
    """Return what generates as GRPOTrainer does, without vLLM."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    words = {str(index): index for index in range(model.config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")), pad_token="0", eos_token="1"
    )

    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=GROUP,
        num_generations=GROUP,
        max_completion_length=load.longest,
        generation_kwargs={"eos_token_id": stops},
        beta=0.0,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )

    trainer: Any = GRPOTrainer(
        model=model,
        reward_funcs=[lambda completions, **columns: [0.0] * len(completions)],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["2"] * GROUP}),
        processing_class=tokenizer,
    )

    trainer.eos_token_ids = stops  # what it masks; the tokenizer knows one of them

    def run(prompts: Prompts) -> int:
        found = trainer._generate_single_turn(prompts, None, {}, GROUP)
        return sum(map(len, found[0]))

    return run


def by_ours(model: Any, load: Load, stops: list[int]) -> Side:
    """Return what generates by the native engine."""
    from hfstack.tasks.causal_lm.decoding.draw import SamplingSettings
    from hfstack.tasks.rl.ppo.actor_critic import ActorCritic
    from hfstack.tasks.rl.ppo.engines.native import NativeEngine

    settings = SamplingSettings(
        max_new_tokens=load.longest, stop_token_ids=tuple(stops), pad_token_id=0
    )
    engine, policy = NativeEngine(settings), ActorCritic(model, critic="none").eval()

    def run(prompts: Prompts) -> int:
        return sum(map(len, engine.generate(policy, prompts).completion_ids))

    return run


def by_batches(model: Any, load: Load, stops: list[int]) -> Side:
    """Return what generates by transformers, AT_ONCE prompts after the other."""
    run = by_generate(model, load, stops)

    def run_batches(prompts: Prompts) -> int:
        firsts = range(0, len(prompts), AT_ONCE)
        return sum(run(prompts[first : first + AT_ONCE]) for first in firsts)

    return run_batches


def by_recipes(model: Any, load: Load, stops: list[int]) -> Side:
    """Return what generates as recipes do, after they have looked at the model."""
    from hfstack.tasks.causal_lm.decoding.draw import SamplingSettings
    from hfstack.tasks.causal_lm.decoding.in_slots import decode_in_slots, find_step

    settings = SamplingSettings(
        max_new_tokens=load.longest,
        stop_token_ids=tuple(stops),
        pad_token_id=0,
        batch_size=AT_ONCE,
    )

    def run(prompts: Prompts) -> int:
        step = find_step(model)
        assert step is not None, "it decodes in slots"
        return sum(map(len, decode_in_slots(step, prompts, settings)))

    return run


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
