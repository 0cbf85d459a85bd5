"""Weights are saved before they are scored, loaded again to compare, and found by a rerun."""

import json
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import Trainer

from hfstack.errors import CheckpointError
from hfstack.runs.record import RunRecord, read_run
from hfstack.training.callbacks import SampleTable
from tests.one_training_step import OLD_CHECKPOINTING
from tests.tiny_runs import save_models, save_rows, tiny_settings

pytestmark = [
    *OLD_CHECKPOINTING,
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True:UserWarning"),
]
ADAPTER = {"use_peft": "true", "lora_target_modules": "all-linear"}
DORA = ADAPTER | {"use_dora": "true"}
EVALUATE = "transformers.Trainer.evaluate"
PREDICT = "transformers.Trainer.predict"
POLICY = "hfstack.tasks.rl.ppo.trainer.PPOTrainer.evaluate"
PROBES = "hfstack.evidence.before_after.BeforeAndAfter.on_train_end"
MERGE = "hfstack.training.saving.merge_adapter"
slow = pytest.mark.slow

# recipe, further flags, and what it calls first once it has trained
FAILURES = [
    pytest.param("pretrain_clm", {}, EVALUATE),
    pytest.param("pretrain_mlm", {}, EVALUATE, marks=slow),
    pytest.param("classify", {}, "hfstack.tasks.classification.predict.classify_logits"),
    pytest.param("classify", ADAPTER, "hfstack.tasks.classification.report.record_split"),
    pytest.param("tag", {}, PREDICT, marks=slow),
    pytest.param("answer", {}, PREDICT, marks=slow),
    pytest.param("seq2seq", {}, PREDICT, marks=slow),
    pytest.param("sft", {}, EVALUATE, marks=slow),
    pytest.param("sft", ADAPTER | {"merge_adapter": "true"}, MERGE),
    pytest.param("sft", {"probe_rows": 2}, PROBES, marks=slow),
    pytest.param("distill", {}, EVALUATE, marks=slow),
    pytest.param("embed", {}, "hfstack.tasks.retrieval.evaluation.RankingEvaluation.measure"),
    pytest.param("reward", {}, EVALUATE, marks=slow),
    pytest.param("dpo", {}, EVALUATE, marks=slow),
    pytest.param("dpo", DORA, EVALUATE),
    pytest.param("kto", {}, EVALUATE, marks=slow),
    pytest.param("orpo", {}, EVALUATE, marks=slow),
    pytest.param("ppo", {}, POLICY),
    pytest.param("rloo", {}, POLICY, marks=slow),
    pytest.param("grpo", DORA, POLICY, marks=slow),
]


def vowels(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The reward of ppo and rloo, in place of the demo's rule."""
    return [sum(letter in "aeiou" for letter in text) / (len(text) + 1) for text in completions]


@pytest.fixture
def train(
    run_recipe, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RunRecord]:
    """Run a recipe for three steps of an epoch; keyword arguments override its settings."""
    monkeypatch.setattr("hfstack.tasks.rl.demo_reward.obeys", vowels)
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    save_models(inputs, tiny_llama)

    def call(recipe: str, **changes: Any) -> RunRecord:
        save_rows(inputs, recipe, train=range(12, 44), held_out=range(9))
        steps = {} if recipe == "ppo" else {"max_steps": 3}
        given = steps | {"learning_rate": 1e-2} | changes
        settings = tiny_settings(recipe, inputs, tmp_path / "out", **given)
        run_recipe(recipe, *(f"--{name}={value}" for name, value in settings.items()))
        return read_run(tmp_path / "out")

    return call


def fails(*args: Any, **kwargs: Any) -> None:
    raise ZeroDivisionError("the metric is broken")


@dataclass
class Breakage:
    """Fails once a trainer has trained, and keeps the weights that it held then."""

    whole: Callable[..., Any]
    trainers: list[Trainer] = field(default_factory=list)
    model: Any = None
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.trainers:
            return self.whole(*args, **kwargs)
        trainer: Any = self.trainers[-1]
        model = trainer.accelerator.unwrap_model(trainer.model)
        self.model = getattr(model, "policy", model)
        self.weights = {name: one.clone() for name, one in weights_of(self.model).items()}
        raise ZeroDivisionError("the metric is broken")


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """Return what is saved of a model: all weights, or those of its adapter."""
    return get_peft_model_state_dict(model) if isinstance(model, PeftModel) else model.state_dict()


def load_as_saved(model: Any, folder: Path) -> Any:
    """Load a folder by the class that was trained, an adapter onto its base."""
    if isinstance(model, PeftModel):
        named = model.peft_config["default"].base_model_name_or_path
        base: Any = type(model.get_base_model())
        return PeftModel.from_pretrained(base.from_pretrained(str(named)), str(folder))
    if hasattr(model, "from_pretrained"):
        return type(model).from_pretrained(folder)
    return type(model)(str(folder))  # of sentence-transformers


@pytest.mark.parametrize(("recipe", "flags", "place"), FAILURES)
def test_what_fails_after_training_costs_no_training(
    recipe: str,
    flags: dict[str, Any],
    place: str,
    train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog,
) -> None:
    owner, _, name = place.rpartition(".")
    breakage = Breakage(getattr(pkgutil.resolve_name(owner), name))
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        begin = Trainer.train

        def note(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
            breakage.trainers.append(trainer)
            return begin(trainer, *args, **kwargs)

        broken.setattr(Trainer, "train", note)
        broken.setattr(place, lambda *args, **kwargs: breakage(*args, **kwargs))
        train(recipe, **flags)

    # the weights are there, load as their kind does, and are those that were trained
    out = tmp_path / "out"
    folder = out / ("adapter" if "use_peft" in flags else "")
    saved = weights_of(load_as_saved(breakage.model, folder))
    assert saved.keys() == breakage.weights.keys()
    assert all(torch.equal(saved[name], one) for name, one in breakage.weights.items())

    # run.json has the reason, and the log says where they are
    record = read_run(out)
    assert record.status == "failed" and "the metric is broken" in str(record.error)
    assert f"its weights are saved in {folder}: --resume_from_checkpoint last" in caplog.text

    # a rerun is asked what to do with them, and does what is missing
    with pytest.raises(CheckpointError, match="already holds trained weights, whose run did not"):
        train(recipe, **flags)
    record = train(recipe, **flags, resume_from_checkpoint="last")
    assert record.status == "finished" and any("eval_" in name for name in record.metrics)
    assert record.save_check["largest_difference"] <= record.save_check["allowed"]
    assert not list(out.rglob("training_args.bin"))

    # nothing was trained again
    if isinstance(breakage.model, PeftModel):
        return
    again = load_as_saved(breakage.model, out).state_dict()
    assert all(torch.equal(again[name], one) for name, one in breakage.weights.items())


@pytest.mark.parametrize(
    ("owner", "method"), [(Trainer, "evaluate"), (SampleTable, "on_train_end")], ids=str
)
def test_the_last_step_is_saved_before_it_is_scored(
    owner: Any, method: str, train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside `train` the Trainer evaluates before it saves, and samples before it returns."""
    settings = {"eval_strategy": "steps", "eval_steps": 3, "logging_steps": 2}
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr(owner, method, fails)
        train("pretrain_clm", **settings)
    saved = load_file(tmp_path / "out" / "model.safetensors")

    record = train("pretrain_clm", **settings, resume_from_checkpoint="last")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert record.status == "finished" and record.restarts[0]["step"] == 3
    assert all(torch.equal(found[name], saved[name]) for name in saved)


def test_more_steps_are_taken_from_a_checkpoint_not_from_the_end(
    train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr(Trainer, "evaluate", fails)
        train("pretrain_clm", **settings)

    longer = {"max_steps": 5, "resume_from_checkpoint": "last", "allow_changed": "max_steps"}
    record = train("pretrain_clm", **settings, **longer)
    assert record.status == "finished" and record.restarts[0]["step"] == 3
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 5


def test_what_was_lost_on_the_way_to_the_disk_ends_the_run(
    train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trainer._save

    def loses(self: Trainer, *args: Any, **kwargs: Any) -> None:
        whole(self, *args, **kwargs)
        for file in tmp_path.glob("out/*.safetensors"):
            weights = load_file(file)
            weights["model.norm.weight"] *= -1
            save_file(weights, file, metadata={"format": "pt"})

    with monkeypatch.context() as broken:
        broken.setattr(Trainer, "_save", loses)
        with pytest.raises(CheckpointError, match=r"out is not what was trained: .* up to \d"):
            train("pretrain_clm")

    record = read_run(tmp_path / "out")
    assert record.status == "failed" and not record.metrics and not record.save_check
    assert (tmp_path / "out" / "model.safetensors").is_file()
