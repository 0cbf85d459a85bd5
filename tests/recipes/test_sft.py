"""Fine-tuning end to end on a tiny model: what it learns from, saves, and refuses."""

import copy
import json
import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    set_seed,
)

from hfstack.errors import AlreadyFinished, ConfigError, DataError, MissingExtraError
from hfstack.runs.record import read_run
from hfstack.tokens.train_tokenizer import CHAT_TEMPLATE
from tests.conftest import ROOT

# peft 0.21 asks for the old name of is_activation_checkpointing (huggingface/peft, peft_model.py)
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # what it warns of is right here (https://github.com/huggingface/peft/issues/2777)
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning"),
]
ANIMALS = ["fox", "owl", "hen", "cat"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """A folder with a tiny chat model and rows in each form."""
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]}
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    pairs = [(f"Who is number {index}?", f"The {ANIMALS[index % 4]}.") for index in range(40)]
    forms = {
        "prompts": [{"prompt": prompt, "completion": answer} for prompt, answer in pairs],
        "messages": [{"messages": talk(prompt, answer)} for prompt, answer in pairs],
        "alpaca": [
            {"instruction": p[:-1], "input": "?" * (n % 2), "output": a}
            for n, (p, a) in enumerate(pairs)
        ],
        "text": [{"text": f"{prompt} {answer}"} for prompt, answer in pairs],
    }
    for name, rows in forms.items():
        write(folder / f"{name}.jsonl", rows)
    return folder


def talk(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def sft(inputs: Path, run_recipe, tmp_path: Path):
    """Call the recipe with small settings; keyword arguments override them, None removes one."""

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "model_name_or_path": inputs / "model",
            "datasets": inputs / "prompts.jsonl",
            "eval_fraction": 0.2,
            "output_dir": tmp_path / "out",
            "max_length": 128,
            "packing": "true",
            "assistant_only_loss": "true",
            "max_steps": 2,
            "per_device_train_batch_size": 1,
            "learning_rate": 3e-3,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            "bf16": "false",
            "activation_checkpointing": "false",
            "answer_tokens": 4,
            "dataloader_pin_memory": "false",
        } | changes
        return run_recipe("sft", *(f"--{k}={v}" for k, v in settings.items() if v is not None))

    return call


def test_trains_answers_and_saves(sft, tmp_path: Path) -> None:
    metrics = sft(
        max_steps=40,
        eval_strategy="steps",
        eval_steps=40,
        answer_rows=5,
        logging_steps=10,
        learning_rate=2e-2,
    )
    record = read_run(tmp_path / "out")
    assert record.status == "finished" and record.metrics == metrics
    # it has learned "The fox."; a uniform guess is ln 304
    assert metrics["held_out_loss"] < 1.5 < math.log(304)
    assert metrics["held_out_perplexity"] == pytest.approx(math.exp(metrics["held_out_loss"]))
    assert metrics["eval_loss"] == pytest.approx(metrics["held_out_loss"], rel=1e-4)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    assert (
        metrics["answer_rows"] == 5 and 0 <= metrics["bleu"] <= 100 and 0 <= metrics["rougeL"] <= 1
    )
    assert metrics["tokens_per_s"] > 0
    # 32 rows of about 28 tokens, in 7 packed rows of which a step reads one
    assert metrics["eval_num_tokens"] == pytest.approx(40 * 32 * 28 / 7, rel=0.2)
    answers = [
        json.loads(line)
        for line in (tmp_path / "out" / record.artifacts["answers"]).read_text().splitlines()
    ]
    assert [set(row) for row in answers] == [
        {"prompt", "answer", "reference", "tokens", "finished"}
    ] * 5
    assert all(
        row["prompt"].startswith("<|user|>Who") and row["prompt"].endswith("<|assistant|>")
        for row in answers
    )
    samples = [
        json.loads(line)
        for line in (tmp_path / "out" / record.artifacts["samples"]).read_text().splitlines()
    ]
    assert {row["step"] for row in samples} == {40} and len(samples) == 3
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert set(model.generation_config.eos_token_id) == {
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids("<|end|>"),
    }
    with pytest.raises(AlreadyFinished):
        sft(
            max_steps=40,
            eval_strategy="steps",
            eval_steps=40,
            answer_rows=5,
            logging_steps=10,
            learning_rate=2e-2,
        )


def test_every_form_of_the_same_rows_is_the_same_data(sft, inputs: Path, tmp_path: Path) -> None:
    common = {
        "eval_fraction": 0,
        "max_steps": 1,
        "packing": "false",
        "per_device_train_batch_size": 40,
    }
    first = sft(**common, output_dir=tmp_path / "a")
    for name, flags in {
        "messages": {"datasets": inputs / "messages.jsonl"},
        "unmarked": {
            "assistant_only_loss": "false"
        },  # the completion alone is learned all the same
        "packed": {"packing": "true", "per_device_train_batch_size": 40},
    }.items():
        metrics = sft(**{**common, **flags}, output_dir=tmp_path / name)
        assert metrics["train_loss"] == pytest.approx(first["train_loss"], rel=1e-5), name


def test_resumes_to_the_same_weights(sft, tmp_path: Path) -> None:
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_only_model": "false"}
    sft(**saving, output_dir=tmp_path / "whole")
    sft(
        **saving,
        output_dir=tmp_path / "resumed",
        resume_from_checkpoint=tmp_path / "whole/checkpoint-2",
    )
    whole, resumed = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("whole", "resumed")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not list((tmp_path / "whole").glob("training_args.bin"))


def test_eval_rows_need_not_be_packed(sft, tmp_path: Path) -> None:
    packed = sft(output_dir=tmp_path / "a")
    single = sft(output_dir=tmp_path / "b", eval_packing="false")
    assert single["held_out_loss"] == packed["held_out_loss"]
    assert single["eval_loss"] == pytest.approx(packed["held_out_loss"], rel=1e-4)


def test_instruction_input_output(
    sft, inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    message = (
        "found the columns instruction, input, output; map them with "
        "--prompt_column instruction --context_column input --completion_column output"
    )
    with pytest.raises(DataError, match=message):
        sft(datasets=inputs / "alpaca.jsonl")
    mapped = {
        "prompt_column": "instruction",
        "completion_column": "output",
        "datasets": inputs / "alpaca.jsonl",
    }
    sft(**mapped, output_dir=tmp_path / "forgotten", max_steps=1)
    # 16 of them are for training
    assert "20 rows have text in the column 'input', which is not read" not in caplog.text
    assert (
        "have text in the column 'input', which is not read: --context_column input reads it"
        in caplog.text
    )
    sft(**mapped, context_column="input", answer_rows=8, output_dir=tmp_path / "read", max_steps=1)
    answers = (tmp_path / "read" / "answers.jsonl").read_text()
    assert "\\n\\n?" in answers


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"use_dora": "true"},
        # one of the two tied embeddings, which a merge must part
        {"lora_target_modules": ".*embed_tokens"},
        {"lora_modules_to_save": "lm_head"},
    ],
    ids=["lora", "dora", "embedding", "head"],
)
def test_a_merged_adapter_is_the_adapter(
    sft, inputs: Path, tmp_path: Path, flags: dict[str, str]
) -> None:
    adapter = {
        "use_peft": "true",
        "lora_target_modules": "all-linear",
        "lora_dropout": 0,
        "max_steps": 3,
        **flags,
    }
    sft(**adapter, merge_adapter="true")
    assert (tmp_path / "out/adapter/adapter_config.json").is_file()
    assert not (tmp_path / "out/adapter_config.json").exists()
    tokens = torch.arange(20, 40)[None]
    base = AutoModelForCausalLM.from_pretrained(inputs / "model")
    before = base(tokens).logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(tokens).logits
    with_adapter = PeftModel.from_pretrained(base, tmp_path / "out/adapter")(
        input_ids=tokens
    ).logits
    assert torch.allclose(merged, with_adapter, atol=1e-5)
    assert (merged - before).abs().max() > 1e-3


@pytest.mark.parametrize("flags", [{}, {"use_dora": "true"}], ids=["lora", "dora"])
def test_an_adapter_alone(sft, tmp_path: Path, flags: dict[str, str]) -> None:
    adapter = {
        "use_peft": "true",
        "lora_target_modules": "all-linear",
        "lora_dropout": 0,
        "max_steps": 3,
        **flags,
    }
    metrics = sft(**adapter)
    assert (tmp_path / "out/adapter_config.json").is_file() and not (
        tmp_path / "out/model.safetensors"
    ).exists()
    merged = sft(**adapter, merge_adapter="true", output_dir=tmp_path / "merged")
    assert merged["held_out_loss"] == metrics["held_out_loss"]
    tokens = torch.arange(20, 40)[None]
    logits = [
        AutoModelForCausalLM.from_pretrained(tmp_path / name)(tokens).logits
        for name in ("out", "merged")
    ]
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert not (tmp_path / "out/adapter").exists() and (tmp_path / "merged/adapter").is_dir()


def test_text_rows(sft, inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="no assistant turn to learn alone: set --assistant_only_loss false"
    ):
        sft(datasets=inputs / "text.jsonl", output_dir=tmp_path / "refused")
    metrics = sft(datasets=inputs / "text.jsonl", assistant_only_loss="false")
    assert metrics["held_out_loss"] > 0 and "bleu" not in metrics


def test_a_tokenizer_without_pad_or_template(
    sft, inputs: Path, tiny_llama: Path, tmp_path: Path, caplog
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = tokenizer.eos_token
    bare = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(bare)
    tokenizer.save_pretrained(bare)
    with pytest.raises(ConfigError, match="no chat template: name one with --chat_template_path"):
        sft(model_name_or_path=bare, output_dir=tmp_path / "a")
    metrics = sft(
        model_name_or_path=bare, chat_template_path="plain.jinja", output_dir=tmp_path / "b"
    )
    assert metrics["held_out_loss"] > 0
    assert (
        "pad token '<|pad|>' (the tokenizer was '<|endoftext|>', which also ends texts)"
        in caplog.text
    )
    saved = AutoTokenizer.from_pretrained(tmp_path / "b")
    assert saved.pad_token == "<|pad|>" and saved.eos_token == "<|endoftext|>"
    assert "### assistant" in saved.chat_template
    joined = sft(model_name_or_path=bare, as_chat="false", output_dir=tmp_path / "c")
    assert joined["held_out_loss"] > 0


def bad_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    good = [{"messages": talk(f"Who {index}?", "Nobody.")} for index in range(12)]
    return [*good, *rows]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"messages": talk("Who?", "")}], "empty completion"),
        ([{"messages": talk("Who?", "x")[:1]}], "no assistant turn"),
        (
            [{"messages": talk("Who? " * 100, "x")}],
            "prompt too long: 4.. tokens leave none of --max_length 128",
        ),
        (
            [{"messages": [{"role": "judge", "content": "Hm"}, *talk("Who?", "x")]}],
            "the chat template fails: a turn",
        ),
    ],
)
def test_rows_that_cannot_be_learned_from(sft, tmp_path: Path, rows, message: str, caplog) -> None:
    data = write(tmp_path / "rows.jsonl", bad_rows(rows))
    place = f"{re.escape(str(data))} line 13"
    with pytest.raises(DataError, match=f"^{place}: {message}.*on_bad_row skip"):
        sft(datasets=data, eval_fraction=0, output_dir=tmp_path / "a")
    assert read_run(tmp_path / "a").status == "failed"
    sft(datasets=data, eval_fraction=0, on_bad_row="skip", output_dir=tmp_path / "b")
    assert "left out 1 of 13 train rows" in caplog.text and f"{data} line 13: " in caplog.text
    counts = read_run(tmp_path / "b").rows.splits["train"]
    assert (counts.read, counts.used, list(counts.left_out.values())) == (13, 12, [1])
    assert "train: 13 rows read, 12 used; left out: 1 " in caplog.text


def test_bad_rows_of_both_splits_are_named_at_once(sft, tmp_path: Path) -> None:
    rows = [{"prompt": f"Who {n}?", "completion": "" if n % 5 == 0 else "x"} for n in range(40)]
    data = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"^8 rows cannot be used, first: ") as refused:
        sft(datasets=data)
    named = re.findall(r"rows\.jsonl line (\d+): empty completion", str(refused.value))
    assert len(named) == 5 and all(int(line) % 5 == 1 for line in named)


def test_a_completion_needs_no_marks_of_the_template(sft, inputs: Path, tmp_path, caplog) -> None:
    tokenizer = AutoTokenizer.from_pretrained(inputs / "model")
    plain = re.sub(r"{%-? *(end)?generation *-?%}", "", tokenizer.chat_template)
    assert plain != tokenizer.chat_template
    tokenizer.chat_template = plain
    model = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(inputs / "model").save_pretrained(model)
    tokenizer.save_pretrained(model)

    settings: dict[str, Any] = {"max_steps": 1, "eval_fraction": 0, "packing": "false"}
    marked = sft(**settings, output_dir=tmp_path / "marked")
    unmarked = sft(**settings, model_name_or_path=model, output_dir=tmp_path / "unmarked")
    assert unmarked["train_loss"] == pytest.approx(marked["train_loss"], rel=1e-5)
    assert "does not mark the assistant's tokens: what follows the prompt is" in caplog.text

    # whole conversations still need them
    with pytest.raises(DataError, match="no {% generation %} markers"):
        sft(model_name_or_path=model, datasets=inputs / "messages.jsonl", output_dir=tmp_path / "c")


def test_mistakes(sft, tmp_path: Path, tiny_llama: Path) -> None:
    for number, (flags, error, message) in enumerate(
        [
            (
                {"max_length": 129},
                ConfigError,
                "--max_length 129 is longer than the model's context of 128 tokens",
            ),
            ({"packing_strategy": "wrapped"}, ConfigError, "lets packed documents read each other"),
            ({"streaming": "true", "eval_fraction": 0}, ConfigError, "drop --streaming"),
            ({"merge_adapter": "true"}, ConfigError, "there is no adapter to merge"),
            ({"use_dora": "true"}, ConfigError, "add --use_peft"),
            ({"load_in_4bit": "true"}, ConfigError, "quantised weights cannot be trained"),
            (
                {"chat_template_path": "absent.jinja"},
                ConfigError,
                "no such file; shipped templates: plain.jinja",
            ),
            ({"eos_token": "<nothing>"}, ConfigError, "not in the tokenizer's vocabulary"),
            ({"context_column": "input"}, DataError, "--context_column input: no such column"),
        ]
    ):
        with pytest.raises(error, match=message):
            sft(**flags, output_dir=tmp_path / str(number))


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_quantisation_names_its_extra(sft) -> None:
    with pytest.raises(
        MissingExtraError, match=r"bitsandbytes is not installed.*hfstack\[quantization\]"
    ):
        sft(load_in_4bit="true", use_peft="true")


@pytest.mark.filterwarnings("ignore")  # what bitsandbytes warns of is its own
def test_an_adapter_on_four_bit_weights(sft, inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    tokenizer = AutoTokenizer.from_pretrained(inputs / "model")
    # on a CPU bitsandbytes 0.50 takes sizes that are multiples of its blocks of 64
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    metrics = sft(
        model_name_or_path=tmp_path / "model",
        use_peft="true",
        load_in_4bit="true",
        lora_r=4,
        lora_target_modules="all-linear",
        max_steps=6,
        learning_rate=3e-2,
    )
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert metrics["held_out_loss"] < math.log(len(tokenizer))


def test_the_shipped_settings_name_their_files() -> None:
    text = (ROOT / "recipes/sft.yaml").read_text()
    assert (
        "recipes/chat_templates/plain.jinja" in text
        and (ROOT / "recipes/chat_templates/plain.jinja").is_file()
    )
