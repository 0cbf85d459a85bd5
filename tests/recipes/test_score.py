"""The score recipe: training's own numbers again, two models side by side, groups, mistakes."""

import gzip
import json
from pathlib import Path

import pytest

from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.runs.record import read_run
from hfstack.tokens.train_tokenizer import train_tokenizer
from tests.recipes.test_classify import sentence
from tests.tiny_encoder import save_tiny_bert

CLOCKS = ("_runtime", "_per_second", "_preparation_time")


@pytest.fixture
def score(run_recipe, tmp_path: Path):
    """Call the recipe; keyword arguments are its options."""

    def call(output: str = "score", **options: object) -> dict[str, float]:
        flags = [f"--{k}={v}" for k, v in options.items()]
        return run_recipe("score", *flags, f"--output_dir={tmp_path / output}")

    return call


def written(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


def test_a_classifier_scores_as_in_its_training(
    score, run_recipe, bert: Path, tmp_path: Path, capsys
) -> None:
    def classify(steps: int, output: str) -> dict[str, float]:
        flags = {
            "model_name_or_path": bert,
            "datasets": train,
            "eval_datasets": held_out,
            "output_dir": tmp_path / output,
            "max_steps": steps,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "report_to": "none",
            "bf16": "false",
            "dataloader_pin_memory": "false",
            "save_strategy": "no",
        }
        return run_recipe("classify", *(f"--{k}={v}" for k, v in flags.items()))

    train = tmp_path / "train.jsonl"
    texts = [(sentence(label, n), label) for n, label in enumerate(["good", "bad"] * 20)]
    train.write_text("".join(json.dumps({"text": t, "label": k}) + "\n" for t, k in texts))
    held_out = tmp_path / "held_out.jsonl"
    rows = [
        {
            "text": sentence(("good", "bad")[n % 2], n),
            "label": ("good", "bad")[n % 2],
            "part": n % 3,
        }
        for n in range(100, 124)
    ]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained, other = classify(6, "out"), classify(1, "other")

    found = score(
        model_name_or_path=tmp_path / "out",
        datasets=held_out,
        reference_model=tmp_path / "other",
        group_column="part",
    )
    # to the last digit; what is left out are the Trainer's clocks, and a temperature that in
    # training was fitted on the other half of the rows
    same = [
        name
        for name in trained
        if name.startswith("eval_") and not name.endswith(("_calibrated", *CLOCKS))
    ]
    assert len(same) > 12 and {name: found[name] for name in same} == {
        name: trained[name] for name in same
    }
    assert found["reference_accuracy"] == other["eval_accuracy"]
    assert found["difference_accuracy"] == found["eval_accuracy"] - other["eval_accuracy"]
    assert found["difference_accuracy_low"] <= found["difference_accuracy"]

    # every row is written, with its group; those where the models part are apart
    lines = written(tmp_path / "score" / "rows.jsonl")
    assert [line["row"] for line in lines] == list(range(1, 25))
    assert [line["group"] for line in lines] == [row["part"] for row in rows]
    right = sum(line["right"] for line in lines) / 24
    assert right == found["eval_accuracy"]
    parted = written(tmp_path / "score" / "parted.jsonl")
    assert len(parted) == found["only_model_right"] + found["only_reference_right"]

    # each group's accuracy is that of its own rows, and the worst one is named
    table = read_run(tmp_path / "score").tables["by group"]
    at = table["columns"].index("accuracy")
    for group, count, *_ in table["rows"]:
        own = [line["right"] for line in lines if str(line["group"]) == group]
        row = next(row for row in table["rows"] if row[0] == group)
        assert count == len(own) == 8 and row[at] == pytest.approx(sum(own) / 8, abs=1e-6)
    worst = min(table["rows"], key=lambda row: row[at])
    assert found["worst_group_accuracy"] == worst[at]
    assert f"worst of 3 groups: {worst[0]}, accuracy" in capsys.readouterr().out

    # mistakes, each in one line
    def refuse(error: type[Exception], match: str, rows: list[dict], **options: object) -> None:
        file = tmp_path / "bad.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(error, match=match) as caught:
            score(
                f"bad-{match[:20]}",
                **{"model_name_or_path": tmp_path / "out", "datasets": file} | options,
            )
        assert "\n" not in str(caught.value)

    unknown = [*rows[:20], {"text": "a fox", "label": "ugly", "part": 1}]
    refuse(DataError, "label is 'ugly', which is none of the 2 labels bad, good", unknown)
    empty = [*rows[:20], {"text": "a fox", "label": "bad", "part": None}]
    refuse(
        DataError, "1 of 21 rows are of no group, the first is row 21", empty, group_column="part"
    )
    refuse(ConfigError, "--group_column 'source': no such column", rows, group_column="source")
    refuse(
        DataError,
        "5 rows are too few for the interval of a difference: give at least 10",
        rows[:5],
        reference_model=tmp_path / "other",
    )
    refuse(
        DataError,
        "no column 'label', found text, part",
        [{"text": "a", "part": 1}, {"text": "b", "part": 2}],
    )


def test_a_model_of_another_task_is_refused(score, tiny_llama: Path, bert: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a fox"}\n')
    with pytest.raises(CheckpointError, match="is a masked language model .*but causal language"):
        score(model_name_or_path=tiny_llama, reference_model=bert, datasets=rows)
    with pytest.raises(ConfigError, match="--datasets: name at least one file"):
        score("none", model_name_or_path=tiny_llama)


def test_text_is_scored_as_evaluate_lm_does(
    score, run_recipe, tiny_llama: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    texts = [f"A fox saw {n} owls near the river, and was happy." for n in range(12)]
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    wanted = run_recipe(
        "evaluate_lm",
        *("--model_name_or_path", tiny_llama, "--eval_datasets", rows),
        *("--seed", "0", "--output_dir", tmp_path / "lm"),
    )
    found = score(model_name_or_path=tiny_llama, datasets=rows, reference_model=tiny_llama)
    assert {k: v for k, v in wanted.items() if k != "tokens_per_s"} == {
        name: found[name] for name in wanted if name != "tokens_per_s"
    }
    assert found["difference_bits_per_byte"] == 0 == found["difference_bits_per_byte_high"]
    assert read_run(tmp_path / "score").recipe == "score"


@pytest.mark.shared
@pytest.mark.slow
def test_sst2_scores_as_its_training_measured(
    run_recipe, score, shared_data: Path, tmp_path: Path
) -> None:
    """Two classifiers of real sentences: each scores as in its training, and both are compared."""
    with gzip.open(shared_data / "cls" / "sst2.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = list(map(json.loads, file))
    files = {name: tmp_path / f"{name}.jsonl" for name in ("train", "test")}
    for name, path in files.items():
        part = [row for row in rows if row["orig_split"] == name]
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    train, held = files.values()

    # words of its own, so that a small model learns from them in seconds
    texts = [row["text"] for row in rows if row["orig_split"] == "train"]
    tokenizer = train_tokenizer(texts, kind="wordpiece", vocab_size=4000, lowercase=True)
    tokenizer.save_pretrained(tmp_path / "words")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    shape |= {"model_type": "bert", "num_attention_heads": 2, "max_position_embeddings": 128}
    (tmp_path / "bert.json").write_text(json.dumps(shape))

    def classify(steps: int, output: str) -> dict[str, float]:
        flags = {
            "model_name_or_path": tmp_path / "bert.json",
            "tokenizer_name_or_path": tmp_path / "words",
            "datasets": train,
            "eval_datasets": held,
            "label_name_column": "label_name",
            "max_steps": steps,
            "per_device_train_batch_size": 32,
            "learning_rate": 2e-3,
            "report_to": "none",
            "bf16": "false",
            "dataloader_pin_memory": "false",
            "save_strategy": "no",
            "output_dir": tmp_path / output,
        }
        return run_recipe("classify", *(f"--{k}={v}" for k, v in flags.items()))

    trained, other = classify(300, "long"), classify(5, "short")
    found = score(
        model_name_or_path=tmp_path / "long",
        datasets=held,
        reference_model=tmp_path / "short",
        group_column="label_name",
    )
    names = ("eval_accuracy", "eval_accuracy_low", "eval_f1_macro", "eval_calibration_error")
    assert all(found[name] == trained[name] for name in names)
    assert found["reference_accuracy"] == other["eval_accuracy"]
    assert found["eval_accuracy_low"] > found["eval_baseline_accuracy"]
    assert found["mcnemar_p"] < 0.05 and found["difference_accuracy_low"] > 0
