"""What a folder holds is said by its JSON files, before a model is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from hfstack.errors import CheckpointError
from hfstack.runs.model_folder import find_causal_lm, refuse_other_model
from hfstack.runs.model_names import refuse_missing_model


def write(path: Path, **content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path.parent


@pytest.mark.parametrize(
    "architecture", ["LlamaForCausalLM", "GPT2LMHeadModel", "GRUForCausalLM", "BertLMHeadModel"]
)
def test_causal_language_models_are_found(tmp_path: Path, architecture: str) -> None:
    folder = write(tmp_path / "run" / "config.json", architectures=[architecture])
    assert find_causal_lm(str(folder)) == str(folder)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (
            {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}},
            "a classifier of 2 labels: hfstack run predict",
        ),
        ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}, "a reward model"),
        ({"architectures": ["BertForSequenceClassification"]}, "a classifier of 2 labels"),
        ({"architectures": ["BertForMaskedLM"]}, "a masked language model: hfstack run generate"),
        ({"architectures": ["BertForTokenClassification"]}, "a tagger"),
        ({"architectures": ["BertForQuestionAnswering"]}, "answers by a span"),
        ({"architectures": ["BertModel"]}, "a model without a head"),
        (
            {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
            "an encoder-decoder",
        ),
        ({"architectures": ["MarianMTModel"], "is_encoder_decoder": True}, "an encoder-decoder"),
    ],
)
def test_other_models_are_refused_by_what_they_are(
    tmp_path: Path, config: dict[str, Any], what: str
) -> None:
    folder = write(tmp_path / "run" / "config.json", **config)
    with pytest.raises(CheckpointError, match=what) as refused:
        find_causal_lm(str(folder))
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


def test_a_config_that_names_no_architecture_is_left_to_who_loads_it() -> None:
    assert refuse_other_model("x", {}) is None


def test_an_adapter_counts_by_its_task(tmp_path: Path) -> None:
    good = write(tmp_path / "lora" / "adapter_config.json", task_type="CAUSAL_LM")
    assert find_causal_lm(str(good)) == str(good)
    bad = write(tmp_path / "cls" / "adapter_config.json", task_type="SEQ_CLS")
    with pytest.raises(CheckpointError, match="is the adapter of a classifier or a reward model"):
        find_causal_lm(str(bad))


def test_of_an_unfinished_run_the_newest_whole_checkpoint_counts(tmp_path: Path) -> None:
    write(tmp_path / "run.json", recipe="sft", status="preempted")
    for step in (2, 10):
        config = tmp_path / f"checkpoint-{step}" / "config.json"
        folder = write(config, architectures=["GPT2LMHeadModel"])
        write(folder / "trainer_state.json", global_step=step)
    (tmp_path / "checkpoint-10" / "checkpoint-is-incomplete.txt").touch()
    assert find_causal_lm(str(tmp_path)) == str(tmp_path / "checkpoint-2")


def test_places_without_a_model(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(CheckpointError) as error:
            find_causal_lm(str(path))
        return str(error.value)

    write(tmp_path / "report" / "run.json", recipe="report", status="finished")
    weights = tmp_path / "sft" / "model.safetensors"
    write(tmp_path / "sft" / "config.json", architectures=["LlamaForCausalLM"])
    weights.touch()

    assert "it is a run of report that is finished" in refused(tmp_path / "report")
    assert f"these do: {tmp_path / 'sft'}" in refused(tmp_path)
    assert f"no such folder; did you mean {tmp_path / 'sft'}?" in refused(tmp_path / "sfft")
    assert f"is a file: name its folder, {tmp_path / 'sft'}" in refused(weights)
    assert f"nor is {tmp_path / 'no'}" in refused(tmp_path / "no" / "sft")
    (tmp_path / "sft" / "config.json").write_text("{")
    assert "config.json cannot be read" in refused(tmp_path / "sft")


def test_what_may_be_on_the_hub_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_causal_lm("gpt2") == "gpt2"
    assert find_causal_lm("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match="runs/sft: no such folder"):
        find_causal_lm("runs/sft")


def test_what_is_neither_here_nor_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "models--kept--before").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    answers: dict[str, bool | Exception] = {"on/it": True, "not/there": False}
    answers["out/of_reach"] = OSError("no route to host")

    def repo_exists(self: HfApi, name: str) -> bool:
        answer = answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(HfApi, "repo_exists", repo_exists)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("here", "kept/before", "on/it"):
        assert refuse_missing_model(name) is None
    with pytest.raises(CheckpointError, match="not/there: no such folder.*missing or private"):
        refuse_missing_model("not/there")
    with pytest.raises(CheckpointError, match="it is out of reach: no route to host"):
        refuse_missing_model("out/of_reach")
