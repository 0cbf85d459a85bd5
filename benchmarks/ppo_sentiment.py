"""Train towards happy stories with PPO: reward, KL and win rate, by seed.

    python benchmarks/ppo_sentiment.py --model stories260k --texts tinystories_lower.jsonl.gz \
        --classifier runs/sst2 --judge runs/rotten_tomatoes

The reward is the probability of a label by a classifier that `hfstack run classify` trained; the
judge is another one, trained on other reviews, which training never asks. Prompts are the first
words of stories. Each seed starts from the same model; every evaluation generates one answer to
each held-out prompt. Intervals are 95 %: of a mean over prompts by Student's t, of a win rate by
Wilson's formula.
"""

import argparse
import math
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, load_dataset
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed

from hfstack.diagnosis.win_rate import win_rate
from hfstack.tasks.rewards.classifier import ClassifierReward
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.trainer import PPOTrainer


def first_words(path: Path, *, words: int, rows: int) -> list[str]:
    """Return the beginnings of texts, each once."""
    stories = load_dataset("json", data_files=str(path), split="train")["text"]
    texts = [" ".join(text.split()[:words]) for text in stories]
    unique = sorted(set(texts))
    random.Random(0).shuffle(unique)
    return unique[:rows]


def shown(values: list[float]) -> str:
    """Return the mean and 95 % interval of independent values, as text."""
    mean = statistics.fmean(values)
    factor = float(stats.t.ppf(0.975, len(values) - 1))
    half = factor * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


@dataclass
class Outcome:
    """The result of one seed."""

    before: str
    after: str
    kl: float
    shares: list[float]
    """For each held-out prompt whether the judge prefers the trained model's answer."""
    seconds: float
    samples: list[tuple[str, str, str]]


def make_settings(options: argparse.Namespace, seed: int, folder: str) -> PPOConfig:
    """Return the settings of PPO, from the options."""
    return PPOConfig(
        output_dir=folder,
        seed=seed,
        per_device_train_batch_size=32,
        num_mini_batches=4,
        total_episodes=options.episodes,
        max_completion_length=options.tokens,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        kl_coef=options.kl_coef,
        critic=options.critic,
        critic_warmup_rollouts=1,
        # machine and logs
        use_cpu=True,
        logging_steps=16,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def train_once(options: argparse.Namespace, seed: int, prompts: dict[str, Dataset]) -> Outcome:
    """Train with one seed and return what changed."""
    set_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(options.model, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    reward = ClassifierReward(options.classifier, options.label)
    judge = ClassifierReward(options.judge, options.judge_label)

    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            model=model,
            args=make_settings(options, seed, folder),
            reward_funcs=[reward],
            train_dataset=prompts["train"],
            eval_dataset=prompts["eval"],
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)

        # answers before and after training, to the same prompts
        trainer.evaluate()
        before = trainer.samples(len(prompts["eval"]))
        began = time.process_time()
        trainer.train()
        seconds = time.process_time() - began

        metrics = trainer.evaluate()
        after = trainer.samples(len(prompts["eval"]))

    asked = [prompt for prompt, _ in before]
    texts = {"before": [text for _, text in before], "after": [text for _, text in after]}
    rewards = {name: reward(asked, answers) for name, answers in texts.items()}
    judged = {name: judge(asked, answers) for name, answers in texts.items()}
    shares = [
        (b > a) + 0.5 * (b == a) for a, b in zip(judged["before"], judged["after"], strict=True)
    ]

    return Outcome(
        before=shown(rewards["before"]),
        after=shown(rewards["after"]),
        kl=metrics["eval_kl_per_completion"],
        shares=shares,
        seconds=seconds,
        samples=list(zip(asked, texts["before"], texts["after"], strict=True))[:3],
    )


def parse_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument(
        "--texts", type=Path, required=True, help="jsonl with a column `text`, may be .gz"
    )

    parser.add_argument("--classifier", required=True)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--label", default="positive")
    parser.add_argument("--judge_label", default="positive")
    parser.add_argument("--words", type=int, default=8, help="of a story that make its prompt")

    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=1280)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--kl_coef", type=float, default=0.05)
    parser.add_argument("--critic", default="separate")
    return parser.parse_args()


def main() -> None:
    """Train with each seed and print the table and a few answers."""
    options = parse_options()
    texts = first_words(options.texts, words=options.words, rows=1256)
    rows = {"train": texts[256:], "eval": texts[:256]}
    prompts = {name: Dataset.from_dict({"prompt": some}) for name, some in rows.items()}

    print("| seed | reward before | after | KL, nats | win rate by the judge | CPU s |")
    print("|---|---|---|---|---|---|")
    shares: list[float] = []
    samples: list[tuple[str, str, str]] = []
    for seed in options.seeds:
        done = train_once(options, seed, prompts)
        shares += done.shares
        samples = done.samples
        wins = win_rate(done.shares)
        print(
            f"| {seed} | {done.before} | {done.after} | {done.kl:.2f} | {wins} | "
            f"{done.seconds:.0f} |",
            flush=True,
        )

    print(f"\nwin rate over all seeds: {win_rate(shares)}\n")
    for prompt, before, after in samples:
        print(f"prompt: {prompt}\n  before: {before}\n  after:  {after}")


if __name__ == "__main__":
    main()
