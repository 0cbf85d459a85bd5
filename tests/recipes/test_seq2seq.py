"""Translation end to end on tiny models: predictions, resumes, adapters, and bad input."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    set_seed,
)

from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.runs.record import read_run
from hfstack.tasks.shared.text_overlap import text_overlap
from tests.tiny_encoder import tiny_bert_tokenizer

ROOT = Path(__file__).parents[2]
ADJECTIVES = ["red", "small", "low", "happy", "brave", "kind", "whole", "near"]
ANIMALS = {"fox": "renard", "owl": "hibou", "rabbit": "lapin"}
THINGS = {"ball": "balle", "river": "fleuve", "forest": "bois"}


def make_rows() -> list[dict]:
    return [
        {
            "id": f"{adjective}-{animal}-{thing}",
            "source": f"the {adjective} {animal} saw the {thing}",
            "target": f"{ANIMALS[animal]} {THINGS[thing]}",
        }
        for adjective in ADJECTIVES
        for animal in ANIMALS
        for thing in THINGS
    ]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write(folder / "train.jsonl", make_rows())
    tiny_tokenizer.save_pretrained(folder / "tokenizer")
    shape = json.loads((ROOT / "recipes" / "architectures" / "t5-5m.json").read_text())
    shape |= {
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
    }
    (folder / "t5-tiny.json").write_text(json.dumps(shape | {"dropout_rate": 0.0}))
    tokenizer = tiny_bert_tokenizer()
    set_seed(0)
    size = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "max_position_embeddings": 40,
    }
    ends = {
        "eos_token_id": tokenizer.sep_token_id,
        "forced_eos_token_id": tokenizer.sep_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "decoder_start_token_id": tokenizer.sep_token_id,
    }
    config = BartConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **size, **ends
    )
    BartForConditionalGeneration(config).save_pretrained(folder / "bart")
    tokenizer.save_pretrained(folder / "bart")
    return folder


@pytest.fixture
def seq2seq(run_recipe, inputs: Path, tmp_path: Path):
    """Call the recipe with small settings; keyword arguments override them, None leaves one out."""

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "model_name_or_path": inputs / "bart",
            "datasets": inputs / "train.jsonl",
            "eval_fraction": 0.2,
            "output_dir": tmp_path / "out",
            "max_steps": 2,
            "per_device_train_batch_size": 16,
            "learning_rate": 5e-3,
            "report_to": "none",
            "bf16": "false",
            "dataloader_pin_memory": "false",
            "save_strategy": "no",
            "max_source_length": 32,
            "max_target_length": 24,
        } | changes
        return run_recipe("seq2seq", *(f"--{k}={v}" for k, v in settings.items() if v is not None))

    return call


@pytest.fixture
def predict(run_recipe, tmp_path: Path):
    def call(model: Path, rows: Path, **changes: object) -> list[dict]:
        folder = tmp_path / f"predicted-{model.name}-{rows.stem}"
        flags = [f"--{k}={v}" for k, v in changes.items()]
        run_recipe(
            "predict",
            f"--model_name_or_path={model}",
            f"--datasets={rows}",
            f"--output_dir={folder}",
            *flags,
        )
        return lines(folder / "predictions.jsonl")

    return call


def test_a_t5_from_scratch_learns_scores_and_predicts_the_same(
    seq2seq, predict, inputs: Path, tmp_path: Path
) -> None:
    metrics = seq2seq(
        model_name_or_path=inputs / "t5-tiny.json",
        tokenizer_name_or_path=inputs / "tokenizer",
        max_steps=80,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        train_sampling_strategy="group_by_length",
        generation_num_beams=2,
        source_prefix="to French: ",
        lr_scheduler_type="constant",
    )
    out = tmp_path / "out"
    assert metrics["eval_rows"] == 14 and metrics["train_rows"] == 58
    assert (
        metrics["eval_rouge1"] > 0.5 > metrics["baseline_copy_rouge1"] and metrics["eval_chrf"] > 50
    )
    assert metrics["eval_bleu_low"] <= metrics["eval_bleu"] <= metrics["eval_bleu_high"]
    assert metrics["eval_source_gain"] > 0.3
    assert "baseline_lead_bleu" not in metrics, (
        "sources of one sentence have no other lead than themselves"
    )

    record = read_run(out)
    scores = {row[0]: row for row in record.tables["scores"]["rows"]}
    assert (
        "nrefs:1" in scores["bleu"][-1]
        and "tok:13a" in scores["bleu"][-1]
        and "nc:6" in scores["chrf"][-1]
    )
    assert record.tables["samples"]["columns"] == ["source", "reference", "output"]
    found = lines(out / record.artifacts["predictions"])
    texts, references = [row["text"] for row in found], [row["references"] for row in found]
    assert text_overlap(texts, references)["chrf"] == pytest.approx(metrics["eval_chrf"], abs=1e-9)
    order = [row["source"] for row in make_rows()]
    assert [order.index(row["source"]) for row in found] == sorted(
        order.index(row["source"]) for row in found
    )

    asked = write(tmp_path / "asked.jsonl", [{"source": row["source"]} for row in found])
    assert [row["text"] for row in predict(out, asked)] == texts
    model = AutoModelForSeq2SeqLM.from_pretrained(out)
    assert (model.generation_config.num_beams, model.generation_config.max_length) == (2, 25)


def test_a_new_model_takes_the_tokens_of_its_tokenizer(
    seq2seq, inputs: Path, tmp_path: Path, tiny_tokenizer
) -> None:
    seq2seq(
        model_name_or_path="bart-5m.json",
        tokenizer_name_or_path=inputs / "tokenizer",
        max_steps=1,
        max_rows=20,
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    end, pad = tiny_tokenizer.eos_token_id, tiny_tokenizer.pad_token_id
    for config in (model.config, model.generation_config):
        assert (config.eos_token_id, config.pad_token_id, config.decoder_start_token_id) == (
            end,
            pad,
            pad,
        )
        assert config.forced_eos_token_id == end
    assert (
        model.config.vocab_size == len(tiny_tokenizer)
        and model.get_input_embeddings().num_embeddings == 300
    )


def test_several_references_parts_of_mappings_and_smoothed_labels(seq2seq, tmp_path: Path) -> None:
    def row(number: int) -> dict:
        targets = ["the fox", "an owl saw"][: 1 + number % 2]
        return {"translation": {"en": f"{number} the ball. They went home.", "xx": targets}}

    path = write(tmp_path / "several.jsonl", [row(number) for number in range(20)])
    columns = {"source_column": "translation.en", "target_column": "translation.xx"}
    metrics = seq2seq(
        datasets=path,
        eval_fraction=0.5,
        label_smoothing_factor=0.1,
        gradient_accumulation_steps=2,
        **columns,
        eval_strategy="steps",
        eval_steps=1,
        predict_with_generate="true",
    )
    record = read_run(tmp_path / "out")
    found = lines(tmp_path / "out" / "predictions.jsonl")
    assert {len(row["references"]) for row in found} == {1, 2} and len(found) == 10
    assert metrics["train_rows"] > 10, "each target is learned"
    assert metrics["baseline_lead_rouge1"] != metrics["baseline_copy_rouge1"]
    assert (
        "nrefs:var" in next(row for row in record.tables["scores"]["rows"] if row[0] == "chrf")[-1]
    )
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    scored = [entry["eval_chrf"] for entry in log if "eval_chrf" in entry]
    assert len(scored) == 2 and scored[-1] == pytest.approx(metrics["eval_chrf"], abs=1e-9)


def test_a_model_that_does_not_read_its_source_is_reported(
    seq2seq,
    inputs: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = BartForConditionalGeneration.from_pretrained(inputs / "bart")
    torch.nn.init.zeros_(model.model.decoder.layers[0].encoder_attn.out_proj.weight)
    model.save_pretrained(tmp_path / "blind")
    tiny_bert_tokenizer().save_pretrained(tmp_path / "blind")
    metrics = seq2seq(model_name_or_path=tmp_path / "blind", learning_rate=1e-9)
    assert metrics["eval_source_gain"] == pytest.approx(0, abs=1e-4)
    assert "the model hardly reads its source" in caplog.text


# upstream says so wherever labels come with the decoder's tokens, of which they are here the same
@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces:FutureWarning")
def test_two_berts_beside_each_other_are_trained(
    seq2seq, predict, inputs: Path, tmp_path: Path
) -> None:
    tokenizer = tiny_bert_tokenizer()
    set_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    one = BertConfig(vocab_size=len(tokenizer), intermediate_size=32, **size)
    both = EncoderDecoderConfig.from_encoder_decoder_configs(one, one)
    both.decoder_start_token_id, both.pad_token_id = tokenizer.cls_token_id, tokenizer.pad_token_id
    both.eos_token_id = tokenizer.sep_token_id
    assert not hasattr(both, "vocab_size"), "the decoder alone has one"
    EncoderDecoderModel(both).save_pretrained(tmp_path / "berts")
    tokenizer.save_pretrained(tmp_path / "berts")

    metrics = seq2seq(model_name_or_path=tmp_path / "berts")
    found = lines(tmp_path / "out" / "predictions.jsonl")
    asked = write(tmp_path / "asked.jsonl", [{"source": row["source"]} for row in found])
    again = predict(tmp_path / "out", asked)
    assert len(found) == metrics["eval_rows"] > 0
    assert [row["text"] for row in again] == [row["text"] for row in found]


def test_resumes_to_the_same_weights(seq2seq, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "eval_fraction": 0}
    seq2seq(output_dir=tmp_path / "whole", **settings)
    seq2seq(
        output_dir=tmp_path / "again",
        resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2",
        **settings,
    )
    whole, again = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "again"))
    assert whole.keys() == again.keys() and all(
        torch.equal(whole[name], again[name]) for name in whole
    )


def test_an_adapter_predicts_what_it_was_scored_by(
    seq2seq, predict, inputs: Path, tmp_path: Path
) -> None:
    metrics = seq2seq(
        use_peft="true", lora_r=4, max_steps=10, learning_rate=5e-2, generation_num_beams=3
    )
    out = tmp_path / "out"
    assert (out / "adapter_config.json").is_file() and not (out / "model.safetensors").exists()
    adapter = load_file(out / "adapter_model.safetensors")
    assert (
        all(weights.abs().max() > 0 for name, weights in adapter.items() if "lora_B" in name)
        and adapter
    )
    found = lines(out / "predictions.jsonl")
    assert metrics["eval_rows"] == len(found)
    asked = write(tmp_path / "asked.jsonl", [{"text": row["source"]} for row in found])
    assert [row["text"] for row in predict(out, asked, text_column="text")] == [
        row["text"] for row in found
    ]
    with pytest.raises(ConfigError, match="which cannot be trained further here: name the model"):
        seq2seq(model_name_or_path=out, output_dir=tmp_path / "more")


def test_long_texts_are_counted_and_logged(
    seq2seq, predict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = make_rows()[:10]
    rows[3]["source"] *= 20
    rows[5]["target"] *= 20
    path = write(tmp_path / "long.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        seq2seq(datasets=path, eval_fraction=0, max_source_length=40, max_steps=1)
    assert "train: 1 of 10 sources are longer than 40 tokens" in caplog.text
    assert (
        "train: 1 of 10 targets are longer than 24 tokens" in caplog.text
        and "they are truncated" in caplog.text
    )
    assert (
        seq2seq(datasets=path, eval_fraction=0, overlong="drop", output_dir=tmp_path / "drop")[
            "train_rows"
        ]
        == 8
    )
    with pytest.raises(
        DataError, match="1 of 10 sources .*the first is text 4: --overlong truncate or drop"
    ):
        seq2seq(datasets=path, eval_fraction=0, overlong="fail", output_dir=tmp_path / "fail")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert len(predict(tmp_path / "out", path)) == 10
    assert "1 of rows 1 to 10 are truncated at 40 tokens" in caplog.text


def test_bad_input_is_one_line(
    seq2seq, predict, inputs: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    empty = write(tmp_path / "empty.jsonl", [*make_rows()[:3], make_rows()[3] | {"source": " "}])
    hollow = write(tmp_path / "hollow.jsonl", [*make_rows()[:3], make_rows()[3] | {"target": ""}])
    number = write(tmp_path / "number.jsonl", [{"source": "a", "target": 1}])
    other = write(tmp_path / "other.jsonl", [{"en": "a", "de": "b"}])
    (tmp_path / "gpt2.json").write_text(json.dumps({"model_type": "gpt2"}))
    lone = {
        "model_name_or_path": tmp_path / "gpt2.json",
        "tokenizer_name_or_path": inputs / "tokenizer",
    }
    for changes, error, message in [
        (
            {"datasets": other},
            DataError,
            "no column 'source' for the source, found en, de; name them with --source_column",
        ),
        (
            {"datasets": other, "source_column": "en"},
            DataError,
            "no column 'target' for the target, found en, de",
        ),
        (
            {"datasets": empty},
            DataError,
            r"\.jsonl line 4: the source is empty; fix it, or leave it out with --on_bad_row skip",
        ),
        ({"datasets": hollow}, DataError, r"\.jsonl line 4: the target is empty"),
        (
            {"datasets": number},
            DataError,
            r"\.jsonl line 1: target is '1', not text or a list of texts",
        ),
        ({"tokenizer_name_or_path": tiny_llama}, ConfigError, "tokenizer"),
        (
            {"model_name_or_path": tiny_llama},
            ConfigError,
            "is llama, which is no encoder-decoder: .*the recipe sft",
        ),
        (lone, ConfigError, "is gpt2, which is no encoder-decoder"),
        ({"model_name_or_path": tmp_path / "nowhere"}, CheckpointError, "nowhere"),
        (
            {"max_source_length": 41},
            ConfigError,
            "--max_source_length 41 is longer than the model's 40 positions",
        ),
        (
            {"max_target_length": 2},
            ConfigError,
            "--max_target_length must be at least 4 tokens, got 2",
        ),
        (
            {"generation_num_beams": 0},
            ConfigError,
            "--generation_num_beams must be at least 1, got 0",
        ),
        (
            {"generation_max_length": 1},
            ConfigError,
            "--generation_max_length must be at least 2 tokens, got 1",
        ),
        (
            {"metric_for_best_model": "accuracy"},
            ConfigError,
            "does not fit this task: choose bleu, chrf, rouge1",
        ),
        ({"overlong": "ignore"}, ConfigError, "overlong"),
        ({"load_in_4bit": "true"}, ConfigError, "add --use_peft"),
        ({"streaming": "true", "eval_fraction": 0}, ConfigError, "--streaming"),
    ]:
        with pytest.raises(error, match=message) as caught:
            seq2seq(
                **{"eval_fraction": 0} | changes,
                output_dir=tmp_path / str(len(list(tmp_path.iterdir()))),
            )
        assert "\n" not in str(caught.value)
    assert (
        seq2seq(datasets=empty, eval_fraction=0, on_bad_row="skip", max_steps=1)["train_rows"] == 3
    )
    with pytest.raises(
        DataError, match="row 1 has no column 'source', found en, de; set --text_column"
    ):
        predict(tmp_path / "out", other)
    found = predict(tmp_path / "out", empty, batch_size=2)
    assert [line.get("problem") for line in found].count("source is empty") == 1
    assert found[3] == {"text": None, "problem": "source is empty"}


def test_the_yaml_runs_with_a_model_and_data_of_one_s_own(
    run_recipe, inputs: Path, tmp_path: Path
) -> None:
    rows = [{"translation": {"en": row["source"], "fr": row["target"]}} for row in make_rows()]
    path = write(tmp_path / "pairs.jsonl", rows)
    metrics = run_recipe(
        "seq2seq",
        f"--config={ROOT / 'recipes' / 'seq2seq.yaml'}",
        f"--model_name_or_path={inputs / 'bart'}",
        f"--datasets={path}",
        "--source_column=translation.en",
        "--target_column=translation.fr",
        f"--output_dir={tmp_path / 'out'}",
        "--max_steps=2",
        "--eval_fraction=0.1",
        "--max_source_length=32",
        "--max_target_length=24",
        "--eval_strategy=steps",
        "--eval_steps=2",
        "--save_strategy=steps",
        "--save_steps=2",
        "--dataloader_pin_memory=false",
    )
    assert metrics["eval_rows"] == 7 and (tmp_path / "out" / "generation_config.json").is_file()


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("data", "flags"),
    [
        ("multi30k_en_de", {"source_column": "en", "target_column": "de", "max_rows": 400}),
        (
            "scitldr_abstract",
            {
                "source_column": "document",
                "target_column": "summaries",
                "max_rows": 200,
                "max_source_length": 256,
            },
        ),
    ],
)
def test_real_rows(
    seq2seq, run_recipe, shared_data: Path, tmp_path: Path, data: str, flags: dict
) -> None:
    path = shared_data / "s2s" / f"{data}.jsonl.gz"
    tokenizer = tmp_path / "tokenizer"
    run_recipe(
        "tokenizer",
        f"--datasets={path}",
        f"--text_column={flags['source_column']}",
        "--vocab_size=1000",
        "--max_rows=300",
        f"--output_dir={tokenizer}",
    )
    metrics = seq2seq(
        model_name_or_path="t5-5m.json",
        tokenizer_name_or_path=tokenizer,
        datasets=path,
        max_steps=20,
        learning_rate=1e-3,
        max_target_length=40,
        **{"max_source_length": 64} | flags,
    )
    assert (
        metrics["eval_rows"] > 5
        and 0 <= metrics["eval_bleu"] < 100
        and metrics["baseline_copy_chrf"] > 0
    )
    assert (
        data != "scitldr_abstract"
        or metrics["baseline_lead_rougeL"] != metrics["baseline_copy_rougeL"]
    )
