"""What a user can get wrong: each mistake is one line on stderr and exit code 1, and nothing is
half-written.
"""

import collections
import gzip
import json
import sys
from pathlib import Path

import pytest

from hfstack.config import command_line
from hfstack.recipe_settings import load_recipe
from hfstack.runs.record import read_run
from tests.conftest import ROOT, SENTENCES


@pytest.fixture
def train(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    """Run the pretraining recipe as its command line does; return its exit code and its own last
    lines.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": f"{i} {SENTENCES[i % 4]}"}) + "\n" for i in range(40))
    )

    def call(**changes: object) -> tuple[int, list[str]]:
        settings = {
            "model_name_or_path": tiny_llama,
            "datasets": rows,
            "eval_fraction": 0.2,
            "block_size": 16,
            "max_steps": 1,
            "output_dir": tmp_path / "out",
            "report_to": "none",
            "bf16": "false",
            "sample_tokens": 2,
            "dataloader_pin_memory": "false",
        } | changes
        path = ROOT / "recipes" / "pretrain_clm.py"
        flags = [f"--{name}={value}" for name, value in settings.items() if value is not None]
        monkeypatch.setattr(sys, "argv", [str(path), *flags])
        module = load_recipe(path)
        capfd.readouterr()
        code = 0
        try:
            command_line(module.main)
        except SystemExit as end:
            code = int(end.code or 0)
        written = capfd.readouterr().err.splitlines()
        return code, [line for line in written if line.startswith("pretrain_clm.py: ")]

    return call


def one_line(outcome: tuple[int, list[str]], *parts: str) -> None:
    code, lines = outcome
    assert code == 1
    assert len(lines) == 1, lines
    for part in parts:
        assert part in lines[0], lines[0]


def test_the_same_call_without_a_mistake_works(train, tmp_path: Path) -> None:
    assert train() == (0, [])
    assert read_run(tmp_path / "out").status == "finished"


def test_unknown_option(train) -> None:
    one_line(
        train(learning_rat=1), "unknown option '--learning_rat'", "did you mean '--learning_rate'?"
    )


def test_bad_choice(train) -> None:
    one_line(
        train(lr_scheduler_type="cosin"), "--lr_scheduler_type", "invalid choice: 'cosin'", "cosine"
    )


def test_wrong_type_in_yaml(train, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("block_size: 16\nwarmup_steps: [1]\n")
    one_line(train(config=tmp_path / "c.yaml"), "c.yaml:2: warmup_steps takes", "got a list")


def test_missing_file(train) -> None:
    one_line(train(datasets="nowhere.jsonl"), "nowhere.jsonl", "no such file")


def test_empty_file(train, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    one_line(train(datasets=tmp_path / "empty.jsonl"), "empty.jsonl", "empty")


def test_malformed_line_270000(train, tmp_path: Path) -> None:
    good = json.dumps({"text": "a b c"}) + "\n"
    with gzip.open(tmp_path / "long.jsonl.gz", "wt") as file:
        file.write(good * 269_999 + '{"text": "torn\n' + good)
    one_line(train(datasets=tmp_path / "long.jsonl.gz"), "long.jsonl.gz line 270000: column 15")


def test_wrong_column(train) -> None:
    one_line(train(text_column="body"), "body", "--text_column", "text")


def test_mixed_types(train, tmp_path: Path) -> None:
    rows = [{"text": "a"}] * 30 + [{"text": 5}] + [{"text": "b"}] * 30
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one_line(
        train(datasets=tmp_path / "mixed.jsonl"), "mixed.jsonl line 31: column 'text' holds integer"
    )


def test_no_eval_rows(train) -> None:
    one_line(train(eval_fraction=0.001), "eval_fraction", "0.001")


def test_vocabulary_larger_than_the_embedding(train, tmp_path: Path, tiny_tokenizer) -> None:
    import copy

    larger = copy.deepcopy(tiny_tokenizer)
    larger.add_tokens([f"<extra{i}>" for i in range(5)])
    larger.save_pretrained(tmp_path / "larger")
    one_line(train(tokenizer_name_or_path=tmp_path / "larger"), "305 tokens", "300 rows")


def test_block_longer_than_the_context(train) -> None:
    one_line(train(block_size=129), "--block_size 129", "context of 128 tokens")


def test_output_dir_of_another_run(train, tmp_path: Path) -> None:
    assert train()[0] == 0
    before = (tmp_path / "out" / "run.json").read_bytes()
    one_line(
        train(seed=7),
        "holds another run of pretrain_clm",
        "seed 42 -> 7",
        "choose another --output_dir",
    )
    assert (tmp_path / "out" / "run.json").read_bytes() == before


def test_unwritable_output_dir(train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one_line(train(output_dir=tmp_path / "file" / "out"), "cannot be written: Not a directory")


def test_disk_too_small_for_two_checkpoints(train, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(
        "hfstack.runs.checkpoint_files.shutil.disk_usage", lambda path: usage(10**6, 10**6, 1000)
    )
    one_line(train(), "two checkpoints need", "make room")


def test_no_such_model(train) -> None:
    one_line(train(model_name_or_path="user/none"), "user/none", "private, missing")


def test_empty_yaml_value_for_a_number(train, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("learning_rate:\n")
    one_line(train(config=tmp_path / "c.yaml"), "c.yaml:1: learning_rate takes float, got null")
