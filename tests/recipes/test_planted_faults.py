"""Faults planted in an alignment chain: each shows in the number that should show it."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import ModelConfig

from hfstack.errors import CheckpointError, DataError
from hfstack.models.loading import load_tokenizer
from hfstack.tasks.causal_lm.generate import generate_from_ids
from hfstack.tasks.preferences.reward_model import load_reward_model
from hfstack.tokens.special_tokens import IGNORED_LABEL
from hfstack.training import checks
from tests.conftest import ROOT
from tests.one_training_step import OLD_CHECKPOINTING

pytestmark = [
    pytest.mark.slow,
    *OLD_CHECKPOINTING,
]
QUIET = {
    "report_to": "none",
    "bf16": "false",
    "activation_checkpointing": "false",
    "gradient_checkpointing": "false",
    "dataloader_pin_memory": "false",
    "save_strategy": "no",
    "logging_steps": 5,
}
KIND, WILD = ["kind", "happy", "small"], ["red", "low", "brave"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(
    run_recipe: Callable[..., dict[str, float]], recipe: str, **settings: object
) -> dict[str, float]:
    shared = {} if recipe == "win_rate" else dict(QUIET)
    if recipe == "rloo":
        del shared["dataloader_pin_memory"]  # it has no data loader, and says so
    return run_recipe(recipe, *(f"--{name}={value}" for name, value in (shared | settings).items()))


def judged_pairs(count: int, *, noise: float, seed: int) -> list[dict[str, Any]]:
    """Pairs whose chosen answer is the kind one, but for a share `noise` of them."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        sides = [f" the fox was {draw.choice(KIND)}", f" the fox was {draw.choice(WILD)}"]
        if draw.random() < noise:
            sides.reverse()
        rows.append(
            {"prompt": f"Tell of fox {seed} {number}:", "chosen": sides[0], "rejected": sides[1]}
        )
    return rows


@pytest.fixture(scope="module")
def answering(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_llama: Path,
):
    """A function that trains the tiny model to answer in one to four words.

    With `masked` the ends of the answers are not scored.
    """

    def train(*, masked: bool) -> tuple[Path, list[list[int]], int]:
        folder = tmp_path_factory.mktemp("answering")
        set_seed(0)
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama)
        end, draw, labels = cast(int, tiny_tokenizer.eos_token_id), random.Random(0), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(120):
            rows = []
            for _ in range(16):
                asked = tiny_tokenizer(f"Fox {draw.randrange(50)}:")["input_ids"]
                answer = tiny_tokenizer(" kind" * draw.randint(1, 4))["input_ids"]
                ids = [*asked, *answer, end]
                scored_end = IGNORED_LABEL if masked else end
                rows.append((ids, [IGNORED_LABEL] * len(asked) + [*answer, scored_end]))
            width = max(len(ids) for ids, _ in rows)
            pad = tiny_tokenizer.pad_token_id
            filled = [ids + [pad] * (width - len(ids)) for ids, _ in rows]
            scored = [one + [IGNORED_LABEL] * (width - len(one)) for _, one in rows]
            ids, targets = torch.tensor(filled), torch.tensor(scored)  # (B, T) each
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (1 - step / 120)
            loss = model(input_ids=ids, labels=targets).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            labels += [one for _, one in rows]
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder, labels, end

    return train


def ended_share(folder: Path, tokenizer: PreTrainedTokenizerFast) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts = [tokenizer(f"Fox {number}:")["input_ids"] for number in range(32)]
    set_seed(1)
    answers = generate_from_ids(model, tokenizer, prompts, max_new_tokens=24, temperature=1.0)
    return sum(one.finished for one in answers) / len(answers)


def test_a_masked_end_is_refused_and_would_never_stop(
    answering, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    sound, labels, end = answering(masked=False)
    assert checks.labels_reach_eos(labels, [end]) is None
    assert ended_share(sound, tiny_tokenizer) > 0.9
    faulty, labels, end = answering(masked=True)
    problem = checks.labels_reach_eos(labels, [end])
    assert problem is not None
    assert ended_share(faulty, tiny_tokenizer) < 0.1, (
        "what the check refuses is a model that does not stop"
    )
    with pytest.raises(DataError, match="answers end"):
        checks.preflight({"train answers end": problem})


def test_label_noise_lowers_the_accuracy_as_seen(
    run_recipe, tiny_llama: Path, tmp_path: Path
) -> None:
    held_out = write(tmp_path / "clean.jsonl", judged_pairs(120, noise=0, seed=1))
    seen, clean = {}, {}
    for noise in (0.0, 0.3, 0.5):
        train = write(tmp_path / f"train{noise}.jsonl", judged_pairs(240, noise=noise, seed=2))
        noisy = write(tmp_path / f"eval{noise}.jsonl", judged_pairs(120, noise=noise, seed=3))
        settings = {
            "datasets": train,
            "model_name_or_path": tiny_llama,
            "max_steps": 40,
            "learning_rate": 3e-3,
        }
        settings |= {"per_device_train_batch_size": 16, "center_rewards_coefficient": 0.01}
        metrics = call(
            run_recipe,
            "reward",
            **settings,
            eval_datasets=noisy,
            output_dir=tmp_path / f"seen{noise}",
        )
        seen[noise] = metrics["eval_accuracy"]
        metrics = call(
            run_recipe,
            "reward",
            **settings,
            eval_datasets=held_out,
            output_dir=tmp_path / f"clean{noise}",
        )
        clean[noise] = metrics["eval_accuracy"]
    assert seen[0.0] > 0.95 and clean[0.0] > 0.95
    assert 0.55 < seen[0.3] < 0.85, (
        "three labels in ten are wrong, so no more than seven in ten can be met"
    )
    assert clean[0.3] > seen[0.3] + 0.1, (
        "the model has learned through the noise: it is the labels that are wrong"
    )
    assert seen[0.5] < 0.65, "labels by a coin teach nothing"


def test_a_reward_for_length_makes_answers_longer_and_length_control_shows_it(
    run_recipe, answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, _, _ = answering(masked=False)
    prompts = write(
        tmp_path / "prompts.jsonl", [{"prompt": f"Fox {number}:"} for number in range(64)]
    )
    copies = tmp_path / "recipes"
    copies.mkdir()
    likes_length = (
        "def long(prompts, completions, **columns):\n    return [len(one) / 20 for one in "
        "completions]\n\n\n"
    )
    source = (ROOT / "recipes" / "rloo.py").read_text()
    assert "\nREWARDS = [obeys]\n" in source
    (copies / "rloo.py").write_text(
        source.replace("REWARDS = [obeys]", f"\n{likes_length}REWARDS = [long]")
    )
    source = (ROOT / "recipes" / "win_rate.py").read_text()
    assert "\nJUDGE = judge_by_score(obeys)\n" in source
    longer = "JUDGE = judge_by_score(lambda prompts, answers: [len(one) for one in answers])"
    (copies / "win_rate.py").write_text(source.replace("JUDGE = judge_by_score(obeys)", longer))
    # where run_recipe looks for recipes/
    monkeypatch.setitem(run_recipe.__globals__, "ROOT", tmp_path)
    metrics = call(
        run_recipe,
        "rloo",
        model_name_or_path=start,
        datasets=prompts,
        as_chat="false",
        output_dir=tmp_path / "rloo",
        max_steps=12,
        per_device_train_batch_size=64,
        num_generations=8,
        max_completion_length=24,
        learning_rate=1e-3,
        kl_coef=0.0,
        warmup_steps=0,
    )
    assert metrics["steps"] == 12
    found = call(
        run_recipe,
        "win_rate",
        model_name_or_path=tmp_path / "rloo",
        reference_model=start,
        datasets=prompts,
        as_chat="false",
        eval_fraction=0,
        max_new_tokens=24,
        temperature=1.0,
        output_dir=tmp_path / "win",
    )
    assert found["answer_characters"] > 1.3 * found["reference_answer_characters"]
    assert found["win_rate_low"] > 0.6, "the judge likes what was rewarded"
    assert found["win_rate_length_controlled"] < found["win_rate"] - 0.1
    assert found["win_rate_length_controlled_low"] < 0.5, "at equal length nothing is left of it"


def test_an_adapter_that_loses_its_trained_head_is_refused(
    run_recipe, tiny_llama: Path, tmp_path: Path
) -> None:
    rows = write(tmp_path / "pairs.jsonl", judged_pairs(160, noise=0, seed=4))
    out = tmp_path / "reward"
    metrics = call(
        run_recipe,
        "reward",
        model_name_or_path=tiny_llama,
        datasets=rows,
        eval_fraction=0.3,
        output_dir=out,
        max_steps=40,
        per_device_train_batch_size=16,
        learning_rate=2e-2,
        use_peft="true",
        lora_r=4,
    )
    assert metrics["eval_accuracy"] > 0.9
    args = ModelConfig(model_name_or_path=str(out), dtype="float32")
    load_reward_model(args, load_tokenizer(args), new_modules=[])
    weights = load_file(out / "adapter_model.safetensors")
    kept = {name: value for name, value in weights.items() if "score" not in name}
    assert len(kept) < len(weights)
    save_file(kept, out / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="was saved without score"):
        load_reward_model(args, load_tokenizer(args), new_modules=[])
