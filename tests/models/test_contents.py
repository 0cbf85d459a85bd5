"""What a folder holds is said from its files, and a model of the wrong kind is refused by it.

The matrix writes configurations alone, since nothing is loaded; a few pairs run end to end.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForTokenClassification,
    LlamaModel,
    set_seed,
)
from trl import ModelConfig

from hfstack.errors import CheckpointError, ConfigError
from hfstack.models.contents import check_kind, identify_model, kind_of_architecture
from hfstack.models.heads import lora_beside_head
from hfstack.models.loading import load_causal_lm, load_masked_lm, load_tokenizer
from hfstack.tasks.classification.model import load_trained_classifier
from hfstack.tasks.preferences.checks import check_starting_policy
from hfstack.tasks.preferences.reward_model import load_reward_model
from hfstack.tasks.rewards.reward_model import RewardModel
from hfstack.tasks.rl.online import check_starting_model
from hfstack.tasks.shared.predict import task_of
from hfstack.tasks.shared.task_models import load_finished
from tests.one_training_step import OLD_CHECKPOINTING, ONE_STEP
from tests.tiny_encoder import tiny_bert_tokenizer

pytestmark = OLD_CHECKPOINTING

KINDS = {
    "causal language model": {"architectures": ["LlamaForCausalLM"]},
    "masked language model": {"architectures": ["BertForMaskedLM"]},
    "sequence classifier": {"architectures": ["BertForSequenceClassification"]},
    "reward model": {
        "architectures": ["LlamaForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
    },
    "token classifier": {"architectures": ["BertForTokenClassification"]},
    "question answering model": {"architectures": ["BertForQuestionAnswering"]},
    "encoder-decoder": {"architectures": ["T5ForConditionalGeneration"]},
    "model without a head": {"architectures": ["BertModel"]},
}
# Folders of sentence-transformers: one of these, with modules.json beside it.
OF_SENTENCE_TRANSFORMERS = {
    "embedding model": KINDS["model without a head"],
    "reranker": KINDS["reward model"],
}
TASKS = {
    "causal language model": "CAUSAL_LM",
    "sequence classifier": "SEQ_CLS",
    "token classifier": "TOKEN_CLS",
    "question answering model": "QUESTION_ANS",
    "encoder-decoder": "SEQ_2_SEQ_LM",
}
# What each recipe calls, and what it takes.
LANGUAGE_MODEL = {"causal language model", "model without a head"}
DOORS: dict[str, tuple[Callable[[Path], Any], set[str]]] = {
    "generate, evaluate_lm, win_rate, preferences, sft, pretrain_clm": (
        lambda folder: load_causal_lm(named(folder), None),  # pyright: ignore[reportArgumentType]
        LANGUAGE_MODEL,
    ),
    "pretrain_mlm, generate": (
        lambda folder: load_masked_lm(named(folder), None),  # pyright: ignore[reportArgumentType]
        {"masked language model", "model without a head"},
    ),
    "dpo, kto, orpo": (
        lambda folder: check_starting_policy(named(folder), sharded=False),
        LANGUAGE_MODEL,
    ),
    "ppo, rloo, grpo": (lambda folder: check_starting_model(str(folder)), LANGUAGE_MODEL),
    "explain, a classifier as the reward": (
        lambda folder: load_trained_classifier(named(folder)),
        {"sequence classifier", "reward model"},
    ),
    "predict": (
        lambda folder: task_of(named(folder), ["token classifier", "encoder-decoder"]),
        {"token classifier", "encoder-decoder"},
    ),
    "predict of a tagger": (
        lambda folder: load_finished(named(folder), "TokenClassification"),
        {"token classifier"},
    ),
    "predict of answers": (
        lambda folder: load_finished(named(folder), "QuestionAnswering"),
        {"question answering model"},
    ),
    "predict of texts": (
        lambda folder: load_finished(named(folder), "ConditionalGeneration"),
        {"encoder-decoder"},
    ),
}


def named(folder: Path) -> ModelConfig:
    return ModelConfig(model_name_or_path=str(folder))


def write_json(path: Path, values: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path.parent


@pytest.fixture
def adapter(tiny_llama: Path, tmp_path: Path) -> Path:
    """A LoRA adapter on the tiny model that changes its outputs, and a tokenizer."""
    torch.manual_seed(0)
    settings: Any = LoraConfig(
        task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), settings)
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def bert(tmp_path: Path) -> Callable[..., Path]:
    """Save a tiny BERT of a class with its tokenizer, and return the folder."""

    def save(kind: Any, **settings: Any) -> Path:
        set_seed(0)
        tokenizer = tiny_bert_tokenizer()
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        config = BertConfig(
            vocab_size=len(tokenizer), num_attention_heads=2, pad_token_id=0, **sizes, **settings
        )
        folder = tmp_path / kind.__name__
        kind(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", DOORS)
def test_each_recipe_takes_its_kinds_and_names_the_others(
    door: str, kind: str, tmp_path: Path
) -> None:
    folder = write_json(tmp_path / "config.json", KINDS[kind])
    call, taken = DOORS[door]
    try:
        call(folder)
    except CheckpointError as error:  # no weights here: what is taken fails later
        refused = f"{kind} ({KINDS[kind]['architectures'][0]}, from {folder}/config.json), but "
        assert (refused in str(error)) == (kind not in taken)
    else:
        assert kind in taken


@pytest.mark.parametrize("kind", OF_SENTENCE_TRANSFORMERS)
@pytest.mark.parametrize("door", DOORS)
def test_each_recipe_names_a_model_of_sentence_transformers(
    door: str, kind: str, tmp_path: Path
) -> None:
    config = OF_SENTENCE_TRANSFORMERS[kind]
    folder = write_json(tmp_path / "config.json", config)
    (folder / "modules.json").write_text("[]")
    call, taken = DOORS[door]
    # what embeds is a model without a head, on which one can be trained; a reranker is no reward
    is_taken = kind == "embedding model" and "model without a head" in taken
    try:
        call(folder)
    except CheckpointError as error:  # no weights here: what is taken fails later
        evidence = f"{config['architectures'][0]} with modules.json, from {folder}"
        assert (f"{kind} ({evidence}), but " in str(error)) == (not is_taken)
    else:
        assert is_taken


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("door", DOORS)
def test_each_recipe_names_an_adapter_of_another_task(door: str, kind: str, tmp_path: Path) -> None:
    task = {"task_type": TASKS[kind], "base_model_name_or_path": str(tmp_path / "gone")}
    folder = write_json(tmp_path / "run" / "adapter_config.json", task)
    call, taken = DOORS[door]
    try:
        call(folder)
    except CheckpointError as error:
        refused = f"{kind} ({TASKS[kind]}, from {folder}/adapter_config.json), but"
        assert (refused in str(error)) == (kind not in taken)
    else:
        assert kind in taken


def test_names_of_architectures_that_end_otherwise() -> None:
    assert kind_of_architecture("Gemma3ForConditionalGeneration") == "causal language model"
    assert kind_of_architecture("GPT2LMHeadModel") == "causal language model"
    assert kind_of_architecture("GruForCausalLM") == "causal language model"
    assert kind_of_architecture("MarianMTModel") == "encoder-decoder"
    assert kind_of_architecture("BertForPreTraining") == "masked language model"
    assert kind_of_architecture("SomebodysOwn") == "model of an unknown task"


def test_one_output_is_a_reward_unless_a_recipe_says_that_it_is_a_class(tmp_path: Path) -> None:
    folder = write_json(tmp_path / "config.json", KINDS["reward model"])
    assert identify_model(str(folder)).kind == "reward model"
    write_json(tmp_path / "classifier.json", {})
    assert identify_model(str(folder)).kind == "sequence classifier"
    adapter = {"task_type": "SEQ_CLS", "base_model_name_or_path": "runs/sft"}
    folder = write_json(tmp_path / "reward" / "adapter_config.json", adapter)
    assert identify_model(str(folder)).kind == "sequence classifier"
    write_json(folder / "run.json", {"recipe": "reward"})
    assert identify_model(str(folder)).kind == "reward model"


def test_a_place_without_a_model_is_described(tmp_path: Path, tiny_llama: Path) -> None:
    def problem(place: Path) -> str:
        with pytest.raises(CheckpointError) as error:
            check_kind(str(place), ("causal language model",))
        return str(error.value)

    (tmp_path / "empty").mkdir()
    assert problem(tmp_path / "empty").endswith("holds no model: it is empty")
    assert "no such directory" in problem(tmp_path / "absent")
    weights = tiny_llama / "model.safetensors"
    assert f"{weights} is a file: name the folder that it is in" in problem(weights)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a file: name the folder"):
        load_tokenizer(named(weights))

    run = write_json(tmp_path / "clean" / "run.json", {"recipe": "clean", "status": "finished"})
    assert "holds no model: it is a run of clean (finished), which left none" in problem(run)
    (run / "checkpoint-90").mkdir()
    (run / "checkpoint-100").mkdir()
    assert f"name one of them, such as {run}/checkpoint-100" in problem(run)
    load_tokenizer(named(tiny_llama)).save_pretrained(tmp_path / "tokenizer")
    assert problem(tmp_path / "tokenizer").endswith("holds no model: a tokenizer only")
    (tmp_path / "bare").mkdir()
    shutil.copyfile(weights, tmp_path / "bare" / weights.name)
    assert "model.safetensors has no config.json beside it" in problem(tmp_path / "bare")


def test_generate_writes_no_noise(run_recipe, bert, tmp_path: Path) -> None:
    def generate(folder: Path) -> None:
        flags = ["--prompts", "the fox", "--output_dir", tmp_path / f"out-{folder.name}"]
        run_recipe("generate", "--model_name_or_path", folder, *flags)

    with pytest.raises(
        CheckpointError,
        match=r"is a sequence classifier \(BertForSequenceClassification, from .*/config.json\), "
        r"but a causal language model is needed here; predict and explain read it",
    ):
        generate(bert(BertForSequenceClassification, num_labels=3))
    with pytest.raises(CheckpointError, match=r"\(BertModel, .*its weights lack cls\.predictions"):
        generate(bert(BertModel))


def test_a_head_that_is_new_is_refused_where_it_is_used_and_logged_where_it_is_trained(
    tmp_path: Path, tiny_tokenizer, caplog: pytest.LogCaptureFixture, monkeypatch, bert
) -> None:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    LlamaModel(config).save_pretrained(tmp_path / "body")
    with pytest.raises(CheckpointError, match=r"weights lack lm_head\.weight, which would be ran"):
        load_causal_lm(named(tmp_path / "body"), tiny_tokenizer)
    load_causal_lm(named(tmp_path / "body"), tiny_tokenizer, new_head=True)

    encoder = bert(BertModel)
    with pytest.raises(CheckpointError, match=r"model without a head \(BertModel, .*but predict"):
        task_of(named(encoder), ["sequence classifier"])
    with pytest.raises(CheckpointError, match="but a reward model is needed here"):
        RewardModel(str(encoder))
    load_reward_model(named(encoder), tiny_bert_tokenizer())
    lines = [record.getMessage() for record in caplog.records]
    assert any("newly initialised lm_head.weight" in line for line in lines)
    assert any("newly initialised classifier" in line for line in lines)


def test_an_encoder_is_never_trained_to_predict_what_it_reads(
    tmp_path: Path, tiny_tokenizer
) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = {"model_type": "bert", "num_attention_heads": 2, **sizes}
    write_json(tmp_path / "bert.json", config)
    with pytest.raises(CheckpointError, match=r"is an encoder \(bert\), whose tokens read the lat"):
        load_causal_lm(named(tmp_path / "bert.json"), tiny_tokenizer)
    write_json(tmp_path / "decoder.json", config | {"is_decoder": True})
    assert load_causal_lm(named(tmp_path / "decoder.json"), tiny_tokenizer).config.is_decoder


def test_an_adapter_is_the_model_that_it_makes(
    adapter: Path, tiny_llama: Path, tiny_tokenizer, tmp_path: Path, run_recipe
) -> None:
    tokens = torch.arange(20, 40)[None]
    theirs = AutoModelForCausalLM.from_pretrained(adapter)(tokens).logits
    ours = load_causal_lm(named(adapter), tiny_tokenizer)
    assert type(ours).__name__ == "LlamaForCausalLM"
    assert torch.allclose(ours(tokens).logits, theirs, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert (theirs - base(tokens).logits).abs().max() > 0.1

    # with --use_peft it stays an adapter, to be trained further
    kept = load_causal_lm(
        ModelConfig(model_name_or_path=str(adapter), use_peft=True), tiny_tokenizer
    )
    trained = {name for name, value in kept.named_parameters() if value.requires_grad}
    assert trained and all("lora_" in name for name in trained)

    # merged by the recipe that the messages name, it is the same model
    run_recipe("merge_checkpoint", "--checkpoint", adapter, "--output_dir", tmp_path / "whole")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert torch.allclose(whole(tokens).logits, theirs, atol=1e-5)
    assert load_tokenizer(named(tmp_path / "whole")).get_vocab() == tiny_tokenizer.get_vocab()


def test_a_reward_model_begins_with_the_body_that_an_adapter_makes(
    adapter: Path, tiny_llama: Path, tiny_tokenizer
) -> None:
    tokens = torch.arange(20, 40)[None]
    body: Any = load_causal_lm(named(adapter), tiny_tokenizer).base_model
    new: list[str] = []
    model: Any = load_reward_model(named(adapter), tiny_tokenizer, new_modules=new)
    expected, got = body(tokens)[0], model.base_model(tokens)[0]
    assert new == ["score"] and torch.allclose(got, expected, atol=1e-5)
    second = ModelConfig(model_name_or_path=str(adapter), use_peft=True)
    with pytest.raises(ConfigError, match="the base of a second one would be .* without it"):
        lora_beside_head(second, new)


def test_an_adapter_without_its_base_or_tokenizer(
    adapter: Path, tiny_tokenizer, tiny_llama: Path, tmp_path: Path
) -> None:
    for path in adapter.glob("tokenizer*"):
        path.unlink()
    assert load_tokenizer(named(adapter)).get_vocab() == tiny_tokenizer.get_vocab()

    file = adapter / "adapter_config.json"
    settings = json.loads(file.read_text())
    write_json(file, settings | {"base_model_name_or_path": str(tmp_path / "gone")})
    with pytest.raises(CheckpointError, match=r"adapter without its base: no model at .*gone"):
        load_causal_lm(named(adapter), tiny_tokenizer)
    write_json(file, settings | {"base_model_name_or_path": None})
    with pytest.raises(CheckpointError, match="names no base model: train it again"):
        load_causal_lm(named(adapter), tiny_tokenizer)
    write_json(file, settings)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be put on its base"):
        load_causal_lm(named(adapter), tiny_tokenizer)


def test_a_masked_model_fills_and_predicts_no_text(bert, tiny_tokenizer) -> None:
    folder = bert(BertForMaskedLM)
    assert load_masked_lm(named(folder), tiny_bert_tokenizer()).config.model_type == "bert"
    with pytest.raises(CheckpointError, match=r"masked language model \(BertForMaskedLM, .*genera"):
        load_causal_lm(named(folder), tiny_tokenizer)


def test_an_adapter_of_another_base_is_refused(
    tmp_path: Path, tiny_llama: Path, tiny_tokenizer
) -> None:
    """PEFT passes over tensors without a place, and makes up those that are missing."""
    deeper = LlamaConfig.from_pretrained(tiny_llama, num_hidden_layers=3)
    AutoModelForCausalLM.from_config(deeper).save_pretrained(tmp_path / "deeper")
    tiny_tokenizer.save_pretrained(tmp_path / "deeper")
    said = {"of 3 on 2": "no place for 2 of its tensors", "of 2 on 3": "lacks 2 of its tensors"}

    for base, other, name in (
        (tmp_path / "deeper", tiny_llama, "of 3 on 2"),
        (tiny_llama, tmp_path / "deeper", "of 2 on 3"),
    ):
        adapter = tmp_path / name
        lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
        adapted.save_pretrained(str(adapter))
        assert load_causal_lm(named(adapter), tiny_tokenizer) is not None
        file = adapter / "adapter_config.json"
        write_json(file, json.loads(file.read_text()) | {"base_model_name_or_path": str(other)})
        with pytest.raises(CheckpointError, match=said[name]):
            load_causal_lm(named(adapter), tiny_tokenizer)


def test_an_adapter_whose_base_was_trained_again_is_refused(
    run_recipe: Any, tmp_path: Path, tiny_llama: Path, tiny_tokenizer
) -> None:
    base, rows = tmp_path / "base", tmp_path / "rows.jsonl"
    shutil.copytree(tiny_llama, base)
    rows.write_text('{"prompt": "The fox", "completion": " ran."}\n')
    settings = {
        **ONE_STEP,
        "as_chat": "false",
        "use_peft": "true",
        "lora_target_modules": "q_proj",
        "model_name_or_path": base,
        "datasets": rows,
        "eval_fraction": 0,
        "output_dir": tmp_path / "adapted",
    }
    del settings["sample_tokens"]
    run_recipe("sft", *(f"--{key}={value}" for key, value in settings.items()))
    assert load_causal_lm(named(tmp_path / "adapted"), tiny_tokenizer) is not None

    weights = load_file(base / "model.safetensors")
    changed = {name: weight + 0.01 for name, weight in weights.items()}  # of the same size
    save_file(changed, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="trained on other weights than .* holds now"):
        load_causal_lm(named(tmp_path / "adapted"), tiny_tokenizer)


@pytest.mark.parametrize("fault", ["renamed", "torn"])
def test_weights_that_are_not_all_there_are_refused(
    tmp_path: Path, tiny_llama: Path, tiny_tokenizer, fault: str
) -> None:
    """Layers that the files lack would be newly initialised like a head, and trained from noise."""
    folder = tmp_path / fault
    shutil.copytree(tiny_llama, folder)
    file = folder / "model.safetensors"
    if fault == "torn":
        file.write_bytes(file.read_bytes()[:2000])
    else:
        weights = load_file(file)
        named_so = {
            key.replace("model.layers.1", "module.layers.1"): weights[key] for key in weights
        }
        save_file(named_so, file, metadata={"format": "pt"})

    said = "lacks 9 weights below its head" if fault == "renamed" else "incomplete|deserializing"
    with pytest.raises(CheckpointError, match=said):
        load_causal_lm(named(folder), tiny_tokenizer, new_head=True)
    with pytest.raises(CheckpointError, match=said):
        load_reward_model(named(folder), tiny_tokenizer)


def test_a_head_of_another_shape_is_one_line(tmp_path: Path, tiny_tokenizer) -> None:
    size: Any = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    size |= {"num_attention_heads": 2, "num_labels": 3}
    config = LlamaConfig(vocab_size=len(tiny_tokenizer), **size)
    LlamaForTokenClassification(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="a token classifier .*: its weights have other sha"):
        load_reward_model(named(tmp_path), tiny_tokenizer)
