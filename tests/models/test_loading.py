"""A model is what its place says it is, or one line says why not."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, CanineConfig, CanineModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from trl import ModelConfig

from hfstack.errors import CheckpointError, ConfigError
from hfstack.models.config_ranges import refuse_impossible_numbers
from hfstack.models.loading import (
    check_vocabulary,
    is_masked_lm,
    load_causal_lm,
    load_tokenizer,
)


def architecture(folder: Path, **changes: object) -> Path:
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 9,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    } | changes
    path = folder / "small.json"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10_000_000}, "num_hidden_layers is 10,000,000 where at most 1,024"),
        ({"hidden_size": 10_000_000}, "1 layers of width 10,000,000 are 372,529 GiB of weights"),
        ({"num_hidden_layers": "two"}, "not a model configuration: "),
        ({"hidden_size": -16}, "small.json: hidden_size is -16; it has to be at least 1"),
        ({"num_attention_heads": 0}, "small.json: num_attention_heads is 0; it has to be at least"),
        ({"num_attention_heads": 3}, "not a multiple"),
        ({"num_key_value_heads": 4}, "num_attention_heads is 2, which the 4 of num_key_value_head"),
        ({"model_type": "nothing"}, "not a model configuration: "),
    ],
)
def test_an_architecture_that_cannot_be_built_is_one_line(
    tmp_path: Path, tiny_tokenizer, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_causal_lm(ModelConfig(str(architecture(tmp_path, **changes))), tiny_tokenizer)
    assert "\n" not in str(caught.value)


def test_layers_are_bounded_by_the_weights_before_anything_is_built(
    tmp_path: Path, tiny_llama: Path, tiny_tokenizer
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 10_000_000
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="num_hidden_layers is 10,000,000 where at most"):
        load_causal_lm(ModelConfig(str(folder)), tiny_tokenizer)


def _changed(model: Path, folder: Path, name: str, **changes: object) -> ModelConfig:
    """Return a copy of a model with other values in one of its files."""
    shutil.copytree(model, folder)
    path = folder / name
    values = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(values | changes))
    return ModelConfig(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 0}, "config.json: num_attention_heads is 0; it has to be at"),
        ({"num_attention_heads": 7}, "which the 2 of num_key_value_heads do not divide"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"head_dim": -1}, "config.json: head_dim is -1; it has to be 0 or above"),
        ({"vocab_size": -5}, "config.json: vocab_size is -5; it has to be at least 1"),
        ({"vocab_size": 10**400}, "config.json: vocab_size is a number of 401 digits"),
        ({"vocab_size": 9}, "other shapes"),
        (
            {"attention_dropout": 7},
            r"config.json: attention_dropout is 7; it has to be in \[0, 1\)",
        ),
        ({"attention_dropout": -0.1}, "config.json: attention_dropout is -0.1; it"),
        ({"rms_norm_eps": float("nan")}, "config.json: rms_norm_eps is nan, which is no number"),
        ({"rms_norm_eps": {"__float__": "NaN"}}, "config.json: rms_norm_eps is nan, which is no"),
        ({"rms_norm_eps": -1e-6}, "config.json: rms_norm_eps is -1e-06; it"),
        ({"rms_norm_eps": float("inf")}, "config.json: rms_norm_eps is inf; it"),
        ({"rope_theta": -1}, "config.json: rope_theta is -1; it has to be above 0"),
        ({"rope_parameters": {"rope_theta": 0, "rope_type": "default"}}, "rope_theta is 0; it"),
        ({"max_position_embeddings": 0}, "config.json: max_position_embeddings is 0; it"),
        ({"initializer_range": -0.02}, "config.json: initializer_range is -0.02; it"),
        ({"my_own_number": float("nan")}, "config.json: my_own_number is nan, which is no"),
        ({"pad_token_id": 10**9}, "Padding_idx"),
        ({"hidden_act": "os.system"}, "os.system"),
        ({"tie_word_embeddings": "maybe"}, "tie_word_embeddings"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1, and no number of them"),
    ],
)
def test_a_model_whose_config_describes_none_is_one_line(
    tmp_path: Path, tiny_llama: Path, tiny_tokenizer, changes: dict[str, object], message: str
) -> None:
    """Reading the tokenizer, which comes first, and reading the model."""
    args = _changed(tiny_llama, tmp_path / "model", "config.json", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_causal_lm(args, tiny_tokenizer)
    assert "\n" not in str(caught.value)
    with contextlib.suppress(CheckpointError):
        load_tokenizer(args)


@pytest.mark.slow
def test_no_family_of_transformers_has_a_number_that_is_refused() -> None:
    checked = 0
    for family in CONFIG_MAPPING_NAMES:
        # a few families have no config of default values
        try:
            values = CONFIG_MAPPING[family]().to_dict()
        except (ValueError, ImportError, StrictDataclassError):
            continue
        refuse_impossible_numbers(values, family, raises=ConfigError)
        checked += 1
    assert checked > 400


def test_a_config_that_the_tokenizer_cannot_be_read_with_is_one_line(
    tmp_path: Path, tiny_llama: Path
) -> None:
    args = _changed(tiny_llama, tmp_path / "model", "config.json", dtype="float1024")
    with pytest.raises(CheckpointError, match="float1024"):
        load_tokenizer(args)


def _adapter(folder: Path, base: object, **changes: object) -> ModelConfig:
    """Return an adapter of LoRA without weights."""
    folder.mkdir()
    values = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base}
    values |= {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(values | changes))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return ModelConfig(str(folder))


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", DEEP, "nested too deeply"),
        ("generation_config.json", "[]", "generation_config.json is not a JSON object"),
        ("generation_config.json", DEEP, "generation_config.json cannot be read: it is nested"),
        ("model.safetensors.index.json", DEEP, "index.json cannot be read: it is nested"),
        ("model.safetensors.index.json", "[]", "index.json is not a JSON object"),
        ("model.safetensors.index.json", "{}", "index.json has no object 'metadata'"),
        ("model.safetensors.index.json", '{"metadata": {}}', "has no object 'weight_map'"),
        (
            "model.safetensors.index.json",
            '{"metadata": {}, "weight_map": {"a": 3}}',
            "names a file of weights that is no text",
        ),
        ("adapter_config.json", DEEP, "adapter_config.json cannot be read: it is nested"),
        ("adapter_config.json", "[]", "adapter_config.json cannot be read"),
    ],
)
def test_odd_files_beside_the_weights_are_one_line(
    tmp_path: Path, tiny_llama: Path, tiny_tokenizer, name: str, content: str, message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    if name.endswith(".index.json"):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_causal_lm(ModelConfig(str(folder)), tiny_tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(model={"type": "Evil"}),
        lambda values: values["model"]["vocab"].update(fox=-4),
        lambda values: values["model"]["merges"].append(["no", "pe"]),
    ],
    ids=["kind", "id", "merge"],
)
def test_a_tokenizer_that_its_library_cannot_read_is_one_line(
    tmp_path: Path, tiny_llama: Path, change
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    values = json.loads((folder / "tokenizer.json").read_text())
    change(values)
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="holds no tokenizer that can be loaded") as caught:
        load_tokenizer(ModelConfig(str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "SafetensorError"),
        ({"base_model_name_or_path": 3}, "names no base model"),
        ({"peft_type": "EVIL"}, "KeyError: 'EVIL'"),
        ({"r": "x"}, "TypeError"),
        ({"target_modules": 3}, "TypeError"),
        ({"target_modules": "((("}, "unterminated"),
        ({"rank_pattern": 3}, "AttributeError"),
        ({"lora_alpha": float("nan")}, "adapter_config.json: lora_alpha is nan"),
        ({"lora_dropout": 7}, r"adapter_config.json: lora_dropout is 7; it has to be in"),
    ],
)
def test_an_adapter_whose_config_describes_none_is_one_line(
    tmp_path: Path, tiny_llama: Path, tiny_tokenizer, changes: dict[str, object], message: str
) -> None:
    args = _adapter(tmp_path / "adapter", str(tiny_llama), **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_causal_lm(args, tiny_tokenizer)
    assert "\n" not in str(caught.value)


def test_adapters_in_a_circle_are_refused(tmp_path: Path, tiny_tokenizer) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    args = _adapter(one, str(two))
    _adapter(two, str(one))
    with pytest.raises(CheckpointError, match="in a circle: name the model under them"):
        load_causal_lm(args, tiny_tokenizer)


@pytest.mark.parametrize("run", ["[]", DEEP, '{"models": 5}', '{"models": [{"path": 3}]}'])
def test_an_odd_record_beside_an_adapter_says_nothing_of_its_base(
    tmp_path: Path, tiny_llama: Path, tiny_tokenizer, run: str
) -> None:
    args = _adapter(tmp_path / "adapter", str(tiny_llama))
    (tmp_path / "adapter" / "run.json").write_text(run)
    with pytest.raises(CheckpointError, match="SafetensorError"):
        load_causal_lm(args, tiny_tokenizer)


def test_a_bug_in_loading_stays_a_traceback(
    tmp_path: Path, tiny_llama: Path, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where the config alone cannot be built is the model at fault."""

    def fail(*_args: object, **_options: object) -> None:
        raise IndexError("a bug")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    with pytest.raises(IndexError, match="a bug"):
        load_causal_lm(ModelConfig(str(tiny_llama)), tiny_tokenizer)


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "/etc/passwd"])
def test_weights_outside_of_the_folder_are_not_read(
    tmp_path: Path, tiny_llama: Path, tiny_tokenizer, shard: str
) -> None:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": shard}}
    args = _changed(tiny_llama, tmp_path / "model", "model.safetensors.index.json", **index)
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="outside of the folder"):
        load_causal_lm(args, tiny_tokenizer)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "config.json"])
def test_a_pipe_in_a_model_is_not_waited_for(
    tmp_path: Path, tiny_llama: Path, tiny_tokenizer, name: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    for load in (load_tokenizer, lambda args: load_causal_lm(args, tiny_tokenizer)):
        with pytest.raises(CheckpointError, match=f"{name} is a pipe or a device"):
            load(ModelConfig(str(folder)))


def test_an_architecture_takes_the_tokenizers_vocabulary(tmp_path: Path, tiny_tokenizer) -> None:
    model = load_causal_lm(ModelConfig(str(architecture(tmp_path))), tiny_tokenizer)
    assert (
        model.get_input_embeddings().weight.shape[0]
        == len(tiny_tokenizer)
        == model.config.vocab_size
    )
    assert model.config.eos_token_id == tiny_tokenizer.eos_token_id
    assert model.config.pad_token_id == tiny_tokenizer.pad_token_id != tiny_tokenizer.eos_token_id
    assert model.dtype == torch.float32


def test_a_shipped_architecture_is_found_from_any_folder(
    tmp_path: Path, tiny_tokenizer, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = load_causal_lm(ModelConfig("recipes/architectures/llama-1m.json"), tiny_tokenizer)
    assert model.config.model_type == "llama"


def test_a_checkpoint_is_loaded_with_its_weights(tiny_llama: Path) -> None:
    args = ModelConfig(str(tiny_llama))
    tokenizer = load_tokenizer(args)
    first, second = load_causal_lm(args, tokenizer), load_causal_lm(args, tokenizer)
    torch.testing.assert_close(first.state_dict(), second.state_dict())


def test_wrong_names(tmp_path: Path, tiny_llama: Path, tiny_tokenizer) -> None:
    with pytest.raises(ConfigError, match="--model_name_or_path is required"):
        load_causal_lm(ModelConfig(), tiny_tokenizer)
    with pytest.raises(
        ConfigError, match=r"nowhere\.json: no such file; shipped architectures: .*llama-5m"
    ):
        load_causal_lm(ModelConfig("nowhere.json"), tiny_tokenizer)
    with pytest.raises(
        ConfigError,
        match="architecture without a tokenizer; name one with --tokenizer_name_or_path",
    ):
        load_tokenizer(ModelConfig("recipes/architectures/llama-5m.json"))

    with pytest.raises(CheckpointError, match="no tokenizer at .*/absent: no such directory"):
        load_tokenizer(ModelConfig(str(tmp_path / "absent")))
    with pytest.raises(CheckpointError, match=r"no model 'user/none' here or at .* private"):
        load_causal_lm(ModelConfig("user/none"), tiny_tokenizer)

    (tmp_path / "bad.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(ConfigError, match=r"bad\.json is not a model configuration"):
        load_causal_lm(ModelConfig(str(tmp_path / "bad.json")), tiny_tokenizer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no model: it is empty"):
        load_causal_lm(ModelConfig(str(tmp_path / "empty")), tiny_tokenizer)


def test_pickled_weights_are_not_loaded(tmp_path: Path, tiny_llama: Path, tiny_tokenizer) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": torch.zeros(300, 32)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds no causal language model"):
        load_causal_lm(ModelConfig(str(folder)), tiny_tokenizer)


def test_a_vocabulary_larger_than_the_embedding_is_refused(
    tiny_llama: Path, tiny_tokenizer, tmp_path: Path
) -> None:
    tiny_tokenizer.save_pretrained(tmp_path)
    larger = load_tokenizer(ModelConfig(str(tmp_path)))
    larger.add_tokens(["<extra>"])
    with pytest.raises(
        ConfigError, match=r"the tokenizer has 301 tokens but the embedding of .* has 300 rows"
    ):
        load_causal_lm(ModelConfig(str(tiny_llama)), larger)


def test_masked_models_are_told_apart(tmp_path: Path, tiny_llama: Path) -> None:
    BertForMaskedLM(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    ).save_pretrained(tmp_path)
    assert is_masked_lm(ModelConfig(str(tmp_path)))
    assert not is_masked_lm(ModelConfig(str(tiny_llama)))
    with pytest.raises(CheckpointError, match="no model"):
        is_masked_lm(ModelConfig(str(tmp_path / "absent")))


def test_a_tokenizer_with_other_ids_than_the_models_own_is_said(
    tmp_path: Path, tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = ModelConfig(model_name_or_path=str(tiny_llama))
    shutil.copytree(tiny_llama, tmp_path / "same")
    load_tokenizer(args, str(tmp_path / "same"))
    assert "other ids" not in caplog.text

    # the same tokens, two of them at each other's place
    shutil.copytree(tiny_llama, tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    core = json.loads(file.read_text())
    vocabulary = core["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(core))
    load_tokenizer(args, str(tmp_path / "other"))
    assert "gives 2 of 300 tokens other ids than the tokenizer of" in caplog.text


def test_a_model_without_a_table_of_embeddings_is_refused(tiny_llama: Path) -> None:
    config = CanineConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    model = CanineModel(config)
    with pytest.raises(ConfigError, match="runs/c is CanineModel, which has no table of token"):
        check_vocabulary(model, AutoTokenizer.from_pretrained(tiny_llama), "runs/c")
