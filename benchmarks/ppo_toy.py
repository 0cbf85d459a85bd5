"""The toy of benchmarks/ppo.py: a small language, a model, a reward, a judge.

Needs only torch, transformers and datasets, so that both sides import this very file, each in its
own environment. The reward of an answer is (words of praise - words of blame) / 3, clipped to [-1,
1]. The model that was trained on the language praises and blames alike, so its reward is about 0;
what a trainer reaches is J = reward - 0.05 KL, with the KL summed over the vocabulary at each token
instead of estimated from samples.

Legend: B prompts, P tokens of the longest prompt, T tokens of the longest answer, V vocabulary.
"""

import random
import re
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

PRAISE = "great brilliant superb moving funny clever charming vivid".split()
BLAME = "dull boring awful clumsy messy weak stale tired".split()
PLAIN = "long short french modern quiet loud simple strange".split()
NOUNS = (
    "film plot cast music script camera story hero villain ending scene sound humor pacing dialogue"
).split()
VERBS = "was felt seemed looked".split()
OPENINGS = ["review :", "my review of this movie :", "here is a short note :", "note :"]
LONG_VOCABULARY = 2048  # of the model for long prompts, so that logits of prompts cost something
ANSWER_TOKENS = 40
KL_WEIGHT = 0.05
FRESH_PROMPTS = 512


def sentence(generator: random.Random) -> str:
    """Return a sentence of two to five judgements."""
    parts = []
    for index in range(generator.randint(2, 5)):
        joint = [generator.choice(["and", "but", "while"])] if index else []
        tone = generator.choice([PRAISE, BLAME, PLAIN])
        judgement = [generator.choice(words) for words in (NOUNS, VERBS, tone)]
        parts += [*joint, "the", *judgement]

    return " ".join([*parts, "."])


def reward(prompts: Any = None, completions: Any = None, **columns: Any) -> list[float]:
    """Return praise minus blame over 3, within [-1, 1], for each answer as text."""
    scores = []
    for text in completions:
        words = re.findall(r"[a-z]+", text)
        balance = sum(word in PRAISE for word in words) - sum(word in BLAME for word in words)
        scores.append(max(-1.0, min(1.0, balance / 3)))
    return scores


def prompts(count: int, *, seed: int, long: bool) -> Dataset:
    """Return rows with a column `prompt`, short or long.

    A short one is an opening of a few tokens, a long one up to sixteen sentences before it. Seed 1
    is for training, any other for judging.
    """
    generator = random.Random(seed)
    texts = []

    for _ in range(count):
        if long:
            before = " ".join(sentence(generator) for _ in range(generator.randint(2, 16)))
            texts.append(f"{before} {generator.choice(OPENINGS)}")
        else:
            opening, noun = generator.choice(OPENINGS), generator.choice(NOUNS)
            texts.append(opening + f" the {noun}" * generator.randint(0, 1))

    return Dataset.from_dict({"prompt": texts})


def make_models(folder: Path) -> None:
    """Save `short/` and `long/`, model and tokenizer, unless they exist.

    Takes about a minute of CPU.
    """
    if (folder / "long" / "config.json").is_file():
        return

    tokenizer = make_tokenizer()
    model = pretrain(tokenizer)

    for name in ("short", "long"):
        if name == "long":
            widen(model, tokenizer)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE trained on the language; pad is not eos."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    generator = random.Random(0)
    core: Any = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()

    texts = (f"{generator.choice(OPENINGS)} {sentence(generator)}" for _ in range(3000))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)

    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int = 700,
    rows: int = 32,
    learning_rate: float = 2e-3,
) -> Any:
    """Train a Llama of 0.46 M parameters on the language."""
    torch.manual_seed(0)
    generator = random.Random(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=True,
    )

    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 50) * max(0.05, 1 - step / steps)

        texts = [f"{generator.choice(OPENINGS)} {sentence(generator)}<eos>" for _ in range(rows)]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)  # (B, T)
        model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss.backward()

        optimizer.step()
        optimizer.zero_grad()

    return model


@torch.no_grad()
def widen(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Grow the vocabulary to LONG_VOCABULARY tokens.

    The new ones are as unlikely as the least likely one.
    """
    # Prompts then cost what a real vocabulary makes them cost, and answers stay what they were.
    ids = tokenizer(["review : the film", "note :"], return_tensors="pt", padding=True)["input_ids"]
    likely = model(ids).logits.softmax(-1).mean((0, 1))  # (V,)
    before, rarest = model.config.vocab_size, int(likely.argmin())
    model.resize_token_embeddings(LONG_VOCABULARY, mean_resizing=False)
    model.model.embed_tokens.weight[before:] = model.model.embed_tokens.weight[rarest]


def load(folder: Path) -> tuple[Any, Any]:
    """Load the model in float32, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    ), tokenizer


@torch.no_grad()
def judge(model: Any, folder: Path, *, long: bool, seed: int = 123) -> dict[str, float]:
    """Return reward, exact KL and J of one answer to each of FRESH_PROMPTS prompts.

    They are never trained on. The KL to the model in `folder` is the sum over an answer's tokens of
    the KL between the two next-token distributions, in nats, mean over answers. `reward_error` is
    the standard error of the mean reward.
    """
    reference, tokenizer = load(folder)
    model.eval()
    torch.manual_seed(seed)
    rewards, kls, ended, lengths = [], [], [], []
    texts = list(prompts(FRESH_PROMPTS, seed=999, long=long)["prompt"])

    for start in range(0, len(texts), 64):
        batch = tokenizer(texts[start : start + 64], return_tensors="pt", padding=True)
        width = batch["input_ids"].shape[1]  # P
        generated = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=ANSWER_TOKENS,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=1,
            pad_token_id=0,
        )[:, width:]  # (B, T)

        # An answer goes up to its eos.
        ends = generated == tokenizer.eos_token_id  # (B, T)
        last = torch.where(ends.any(1), ends.int().argmax(1), generated.shape[1])  # (B,)
        answer = torch.arange(generated.shape[1])[None] <= last[:, None]  # (B, T)
        generated = generated.masked_fill(~answer, tokenizer.pad_token_id)

        kls += exact_kl(model, reference, batch, generated, answer).tolist()
        answers = [
            tokenizer.decode(row[kept], skip_special_tokens=True)
            for row, kept in zip(generated, answer, strict=True)
        ]

        rewards += reward(completions=answers)
        ended += ends.any(1).float().tolist()
        lengths += answer.sum(1).tolist()

    count = len(rewards)
    mean, kl = sum(rewards) / count, sum(kls) / count
    spread = (sum((value - mean) ** 2 for value in rewards) / (count - 1)) ** 0.5
    return {
        "reward": mean,
        "reward_error": spread / count**0.5,
        "kl": kl,
        "J": mean - KL_WEIGHT * kl,
        "ended_share": sum(ended) / count,
        "answer_tokens": sum(lengths) / count,
    }


def exact_kl(
    model: Any,
    reference: Any,
    batch: Any,
    generated: torch.Tensor,
    answer: torch.Tensor,
) -> torch.Tensor:
    """Return the KL to the reference of each answer in nats: (B,).

    It is summed over the vocabulary at each token.

    Args:
        model: the policy.
        reference: the model that it started from.
        batch: `input_ids` and `attention_mask` of the prompts, (B, P) each.
        generated: (B, T), token ids, padded behind the answer.
        answer: (B, T) bool, the tokens of the answer.
    """
    width = batch["input_ids"].shape[1]
    ids = torch.cat([batch["input_ids"], generated], 1)  # (B, P + T)
    mask = torch.cat([batch["attention_mask"], answer.long()], 1)  # (B, P + T)
    positions = (mask.cumsum(1) - 1).clamp(min=0)

    log_probs = []
    for one in (model, reference):
        logits = one(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        log_probs.append(logits[:, width - 1 : -1].log_softmax(-1))  # (B, T, V)

    policy, start = log_probs
    kl = (policy.exp() * (policy - start)).sum(-1)  # (B, T)
    return (kl * answer).sum(1)


class Curve:
    """The CPU seconds and mean reward of each rollout, since the start of training."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._began = 0.0

    def begin(self) -> None:
        """Start the clock."""
        self._began = time.process_time()

    def add(self, *, episodes: float, reward: float, kl: float) -> None:
        """Record a rollout; `episodes` are those whose updates are done by now."""
        self.rows.append(
            {"episodes": episodes, "reward": reward, "kl": kl, "cpu_s": self.seconds()}
        )

    def seconds(self) -> float:
        """Return the CPU seconds since `begin`."""
        return time.process_time() - self._began


def reached(rows: list[dict[str, float]], level: float) -> dict[str, float] | None:
    """Return the first rollout at which the reward is `level` or above.

    The reward is the mean of three rollouts in a row. None when it is never reached.
    """
    for index in range(2, len(rows)):
        if sum(row["reward"] for row in rows[index - 2 : index + 1]) / 3 >= level:
            return rows[index]
    return None
