"""Faults that are trained: toy models with a flaw each, and the diagnosis of what
was recorded.
"""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, set_seed

from benchmarks import ppo_toy
from hfstack.diagnosis.diagnose import as_paragraph, diagnose, link_verdicts
from hfstack.diagnosis.findings import ChainRun
from hfstack.tasks.preferences.metrics import reward_metrics
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.trainer import PPOTrainer

pytestmark = pytest.mark.slow

PAIRS = 300


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model that was taught the language of reviews."""
    folder = tmp_path_factory.mktemp("toy")
    ppo_toy.make_models(folder)
    return folder / "short"


def optimise(
    folder: Path, output_dir: Path, *, model: Any = None, rollouts: int = 8, **settings: Any
) -> ChainRun:
    """The run of PPO on the toy, as it was logged."""
    start, tokenizer = ppo_toy.load(folder)
    defaults = {
        "learning_rate": 1e-4,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 0.0,
        "critic": "separate",
    }
    args = PPOConfig(
        output_dir=str(output_dir),
        per_device_train_batch_size=32,
        num_mini_batches=4,
        num_ppo_epochs=4,
        total_episodes=128 * rollouts,
        max_completion_length=ppo_toy.ANSWER_TOKENS,
        lr_scheduler_type="constant",
        missing_eos_penalty=1.0,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        seed=0,
        **(defaults | settings),
    )
    trainer = PPOTrainer(
        model=start if model is None else model,
        args=args,
        reward_funcs=ppo_toy.reward,
        processing_class=tokenizer,
        train_dataset=ppo_toy.prompts(512, seed=1, long=False),
        eval_dataset=ppo_toy.prompts(128, seed=2, long=False),
    )
    began = trainer.evaluate()
    trainer.train()
    history: dict[str, list[tuple[int, float]]] = {}
    for row in trainer.state.log_history:
        if "reward" in row:
            for name, value in row.items():
                history.setdefault(name, []).append((row["step"], value))
    return ChainRun("ppo", "ppo", {"start_ended_share": began["eval_ended_share"]}, history=history)


def pairs(*, longer_wins: bool, seed: int) -> list[tuple[str, str]]:
    """(chosen, rejected) reviews: by praise, with equal lengths on average, or by length alone."""
    generator, found = random.Random(seed), []
    while len(found) < PAIRS:
        first, second = ppo_toy.sentence(generator), ppo_toy.sentence(generator)
        worth = (
            (len(first), len(second))
            if longer_wins
            else ppo_toy.reward(completions=[first, second])
        )
        if worth[0] != worth[1]:
            found.append((first, second) if worth[0] > worth[1] else (second, first))
    return found


def reward_run(folder: Path, *, taught: list[tuple[str, str]]) -> ChainRun:
    """A reward model taught these pairs (Bradley and Terry), measured on pairs that praise
    decides."""
    set_seed(0)
    _, tokenizer = ppo_toy.load(folder)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)

    def score(texts: list[str]) -> torch.Tensor:
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        # (B,)
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[
            :, 0
        ]

    for first in range(0, len(taught), 20):
        part = taught[first : first + 20]
        margins = score([chosen for chosen, _ in part]) - score([rejected for _, rejected in part])
        torch.nn.functional.softplus(-margins).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    held_out = pairs(longer_wins=False, seed=99)
    with torch.no_grad():
        chosen, rejected = (score([pair[side] for pair in held_out]).tolist() for side in (0, 1))
    lengths = [[len(pair[side]) for pair in held_out] for side in (0, 1)]
    metrics = reward_metrics(
        chosen, rejected, chosen_lengths=lengths[0], rejected_lengths=lengths[1]
    )
    return ChainRun("reward", "reward", {f"eval_{name}": value for name, value in metrics.items()})


def bad_checks(run: ChainRun, link: str) -> set[str]:
    return {one.check for one in diagnose([run]) if one.link == link and one.verdict == "bad"}


def test_a_sound_policy_has_no_bad_check(toy: Path, tmp_path: Path) -> None:
    run = optimise(toy, tmp_path, rollouts=12)
    verdicts = link_verdicts(diagnose([run]))
    assert verdicts["policy"] in ("ok", "warn") and verdicts["sft"] == "ok", as_paragraph(
        diagnose([run])
    )


def test_a_learning_rate_that_is_too_high(toy: Path, tmp_path: Path) -> None:
    run = optimise(toy, tmp_path, learning_rate=1e-2, critic_learning_rate=1e-4)
    assert bad_checks(run, "policy") & {"update KL", "clip fraction", "ratio", "KL", "reward"}
    assert as_paragraph(diagnose([run])).startswith("The weak link is the policy.")


def test_a_critic_that_does_not_learn(toy: Path, tmp_path: Path) -> None:
    run = optimise(toy, tmp_path, critic_learning_rate=0.0)
    assert bad_checks(run, "policy") == {"critic"}


@pytest.mark.parametrize(
    ("sentences", "steps"), [(6, 120), (1, 12)], ids=["never-ends", "undertrained"]
)
def test_a_start_that_does_not_end_its_answers(
    toy: Path, tmp_path: Path, sentences: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taught texts that are longer than the longest answer, so that it never sees an end in time;
    or hardly taught.
    """
    _, tokenizer = ppo_toy.load(toy)
    plain = ppo_toy.sentence
    monkeypatch.setattr(
        ppo_toy, "sentence", lambda generator: " ".join(plain(generator) for _ in range(sentences))
    )
    model = ppo_toy.pretrain(tokenizer, steps=steps)
    monkeypatch.undo()
    run = optimise(toy, tmp_path, model=model, rollouts=2)
    assert bad_checks(run, "sft") == {"answers end"}
    assert as_paragraph(diagnose([run])).startswith("The weak link is the sft.")


def test_reward_models(toy: Path) -> None:
    """One that learned what counts, one that learned nothing, and one that learned length."""
    sound = reward_run(
        toy, taught=[pair for seed in range(6) for pair in pairs(longer_wins=False, seed=seed)]
    )
    assert link_verdicts(diagnose([sound]))["reward model"] in ("ok", "warn"), as_paragraph(
        diagnose([sound])
    )
    untaught = reward_run(toy, taught=[])
    assert "pair accuracy" in bad_checks(untaught, "reward model")
    biased = reward_run(
        toy, taught=[pair for seed in range(6) for pair in pairs(longer_wins=True, seed=seed)]
    )
    assert "length bias" in bad_checks(biased, "reward model")
    alone = dataclasses.replace(biased, label="biased")
    assert "reward model" in as_paragraph(diagnose([alone]))
