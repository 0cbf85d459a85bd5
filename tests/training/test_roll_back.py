"""A loss spike that is answered by going back: weights, moments, data and steps after it, and what
is refused.
"""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hfstack.errors import CheckpointError, ConfigError, DivergedError
from hfstack.runs.environment import is_sharded, uses_deepspeed
from hfstack.training.divergence import find_rows
from hfstack.training.roll_back import RollBackSpikes, load_weights_and_moments
from tests.training.test_checkpointing import At, Poisoned, crash, same, trainer_of, weights
from tests.two_processes import spawn

# A spike at the row that is multiplied, once in each epoch of 12 steps.
SPIKY: dict[str, Any] = {
    "poison": (int(Poisoned().rows[5][0]), 50.0),
    "max_steps": 24,
    "learning_rate": 1e-3,
}


@pytest.fixture
def train(
    tmp_path: Path,
    tiny_llama: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
):
    """Train a tiny model for six steps under `protect`; keyword arguments override settings."""
    monkeypatch.setattr("sys.argv", ["pretrain.py"])
    return trainer_of(tmp_path, tiny_llama, tiny_tokenizer)


def guard(**changes: Any) -> RollBackSpikes:
    return RollBackSpikes(
        **{"sigmas": 6, "window": 6, "steps_before": 2, "steps_left_out": 5} | changes
    )


def moments(folder: Path) -> dict[int, dict[str, torch.Tensor]]:
    return torch.load(folder / "optimizer.pt", weights_only=True)["state"]


def equal(one: dict[Any, Any], two: dict[Any, Any]) -> bool:
    assert one.keys() == two.keys()
    return all(
        equal(one[k], two[k]) if isinstance(one[k], dict) else torch.equal(one[k], two[k])
        for k in one
    )


def test_it_goes_back_leaves_out_the_data_and_goes_on(
    train: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spikes = guard()
    trainer = train("out", spikes, save_steps=1, **SPIKY)
    at, to = spikes.roll_backs[0]
    assert to == at - 2, "the newest checkpoint that is old enough"
    assert f"back to checkpoint-{to}; what is read up to step {to + 5} is left out" in caplog.text
    before = tmp_path / "out" / f"checkpoint-{to}"
    for step in range(at, to + 6):
        after = tmp_path / "out" / f"checkpoint-{step}"
        assert equal(weights(before), weights(after)), f"step {step} changed a weight"
        assert equal(moments(before), moments(after)), f"step {step} changed a moment"
    assert not equal(weights(before), weights(tmp_path / "out" / f"checkpoint-{to + 6}")), (
        "then it continues"
    )
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in log] == list(range(1, 25)), (
        "each step once, and none missing"
    )
    assert [entry["learning_rate"] for entry in log] == pytest.approx(
        [1e-3 * (24 - n) / 24 for n in range(24)]
    )
    assert (
        log[-1]["roll_backs"] == len(spikes.roll_backs) and log[-1]["skipped_steps"] >= to + 6 - at
    )


@pytest.mark.parametrize("when", ["before the spike", "while data is left out"])
def test_a_crash_and_a_resume_change_nothing(
    train: Callable[..., Any], tmp_path: Path, when: str
) -> None:
    spikes = guard()
    train("whole", spikes, **SPIKY)
    at, _ = spikes.roll_backs[0]
    with pytest.raises(RuntimeError):
        train(
            "out",
            guard(),
            At("on_step_begin", at - 1 if when == "before the spike" else at + 2, crash),
            **SPIKY,
        )
    again = guard()
    train("out", again, resume_from_checkpoint="last", **SPIKY)
    same(tmp_path / "whole", tmp_path / "out")
    assert again.roll_backs == spikes.roll_backs


def roll_back_together(rank: int, folder: Path, llama: Path) -> dict[str, Any]:
    """The run of above in two processes, of which the first one alone looks for the checkpoint."""
    sys.argv = ["pretrain.py"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(llama)
    spikes = guard()
    trainer = trainer_of(folder, llama, tokenizer)(
        "out", spikes, ddp_backend="gloo", **SPIKY | {"per_device_train_batch_size": 1}
    )
    return {"roll_backs": spikes.roll_backs, "weights": dict(trainer.model.state_dict())}


@pytest.mark.slow
def test_all_processes_go_back_to_the_same(tmp_path: Path, tiny_llama: Path) -> None:
    one, two = spawn(roll_back_together, tmp_path, tiny_llama)
    assert one["roll_backs"] and one["roll_backs"] == two["roll_backs"]
    assert equal(one["weights"], two["weights"])


def test_without_an_old_checkpoint_the_spike_alone_is_skipped(
    train: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    spikes = guard(steps_before=23)
    train("out", spikes, **SPIKY)
    assert not spikes.roll_backs and 1 <= spikes.skipped <= 2
    warned = "no complete checkpoint is 23 steps older, so nothing but this step is left out"
    assert warned in caplog.text


def test_what_an_earlier_return_undid_is_not_gone_back_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (900, 975, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
    monkeypatch.setattr("hfstack.training.roll_back.find_damage", lambda path, **kwargs: None)
    spikes = RollBackSpikes(steps_before=100)
    assert spikes._choose(tmp_path, 1080) == tmp_path / "checkpoint-975"
    spikes.roll_backs = [[990, 900]]
    assert spikes._choose(tmp_path, 1080) == tmp_path / "checkpoint-900", (
        "975 holds what was undone at 990"
    )
    assert spikes._choose(tmp_path, 1100) == tmp_path / "checkpoint-1000"


def test_it_gives_up_in_the_end(train: Callable[..., Any]) -> None:
    with pytest.raises(
        DivergedError, match=r"the loss spiked again at step \d+, after going back 1 times: lower"
    ) as e:
        train("out", guard(most=1), **SPIKY | {"max_steps": 60})
    assert "\n" not in str(e.value)


def test_what_cannot_go_back_is_refused(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigError, match="goes back to a checkpoint: it needs --save_strategy steps"
    ):
        train("none", guard(), save_strategy="no")
    with pytest.raises(
        ConfigError,
        match="needs steps_before, steps_left_out and most of at least 1, got 0, 5 and 20",
    ):
        guard(steps_before=0)
    arguments: Any = SimpleNamespace(
        save_strategy="steps", save_only_model=False, fsdp=None, deepspeed_plugin=None
    )
    with pytest.raises(ConfigError, match=r"give it to protect\(run, spikes=\.\.\.\)"):
        guard().on_train_begin(arguments)
    # all that `accelerate launch` leaves of fsdp2.yaml
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="RollBackSpikes does not work with FSDP and DeepSpeed"):
        guard().on_train_begin(arguments)


def test_shards_are_seen_however_they_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Any = SimpleNamespace(fsdp=None, deepspeed_plugin=None)
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert not is_sharded(plain) and not uses_deepspeed(plain)
    assert is_sharded(SimpleNamespace(fsdp=True, deepspeed_plugin=None))
    assert is_sharded(SimpleNamespace(fsdp=None, deepspeed_plugin=object()))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert is_sharded(plain) and not uses_deepspeed(plain)


@pytest.mark.parametrize("adapter", [False, True])
def test_weights_and_moments_are_put_back_and_the_learning_rate_is_not(
    tmp_path: Path, tiny_llama: Path, adapter: bool
) -> None:
    model: Any = LlamaForCausalLM.from_pretrained(tiny_llama)
    if adapter:
        model = get_peft_model(
            model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        )
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=0.1
    )

    def step() -> None:
        ids = torch.arange(2, 12)[None]  # (1, tokens)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    known = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    model.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    optimizer.param_groups[0]["lr"] = 0.05
    step()
    assert not equal(known[0], model.state_dict()) and not equal(
        known[1], optimizer.state_dict()["state"]
    )
    load_weights_and_moments(tmp_path, model, optimizer)
    assert equal(known[0], model.state_dict()) and equal(known[1], optimizer.state_dict()["state"])
    assert optimizer.param_groups[0]["lr"] == 0.05
    other = LlamaForCausalLM(
        LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, vocab_size=8)
    )
    with pytest.raises(CheckpointError, match="does not hold the weights of this model"):
        load_weights_and_moments(tmp_path / "nowhere", other, optimizer)


@pytest.mark.parametrize("kind", ["table", "list"])
def test_rows_of_a_batch_are_found_in_the_data(kind: str) -> None:
    known = [[5, 6, 7, 8], [5, 6], [9] * 6, [5, 6, 7, 9]] * 100
    rows: Any = [{"input_ids": ids} for ids in known]
    dataset = Dataset.from_list(rows) if kind == "table" else rows
    wanted = [[5, 6, 7, 9], [5, 6, 0, 0], [0, 0, 5, 6], [9, 9, 9, 9], [5, 6, 7, 7]]
    assert find_rows(dataset, wanted, 0) == [3, 1, 1, 2, None], (
        "cut or padded, and nothing that is not there"
    )
    assert find_rows(dataset, [[5, 6, 1, 1]], 0) == [None]
    assert (
        find_rows([{"prompt": "a"}], wanted[:1], 0)
        == find_rows(iter(rows), wanted[:1], 0)
        == [None]
    )
