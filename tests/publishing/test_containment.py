"""What is published, shown or exported of a run lies in its folder, wherever links lead."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from hfstack.errors import CheckpointError, DataError
from hfstack.feedback.export import read_stores, store_paths
from hfstack.publishing.card.render import pick_samples
from hfstack.publishing.files import detect_kind, make_item, published_files, tokenizer_files
from hfstack.publishing.lineage import follow_chain
from hfstack.publishing.merging import write_merged
from hfstack.recipe_settings import load_recipe
from hfstack.reporting.runs import load_runs
from hfstack.runs.record import read_run
from tests.conftest import ROOT
from tests.reporting.test_page import write_run, write_samples

PRIVATE = "the private prompt of somebody else"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A run of another project, in a folder of its own, and beside it a file that is no run's."""
    place, artifacts = tmp_path / "elsewhere" / "other", {"samples": "s.jsonl"}
    folder = write_run(place, recipe="sft", artifacts=artifacts)
    write_samples(folder / "s.jsonl", [{"step": 1, "prompt": PRIVATE, "completion": "x"}])
    (tmp_path / "elsewhere" / "notes.json").write_text(f'{{"note": "{PRIVATE}"}}')
    return tmp_path / "elsewhere"


@pytest.fixture
def model(tmp_path: Path, tiny_llama: Path) -> Path:
    """A finished run with a model, in a folder of runs."""
    folder = write_run(tmp_path / "runs" / "sft", recipe="sft")
    LlamaForCausalLM.from_pretrained(tiny_llama).save_pretrained(folder)
    for name, path in tokenizer_files(tiny_llama).items():
        (folder / name).write_bytes(path.read_bytes())
    return folder


def link(path: Path, target: Path) -> Path:
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    return path


@pytest.mark.parametrize(
    "name", ["task.json", "classifier.json", "chat_template.jinja", "extra.model", "config.json"]
)
def test_no_link_of_a_run_is_published(model: Path, private: Path, name: str) -> None:
    link(model / name, private / "notes.json")
    with pytest.raises(CheckpointError, match=rf"{name} is a link to .*notes.json, outside of"):
        published_files(model, detect_kind(model, {}), {})


def test_a_link_inside_of_a_run_is_a_file_of_it(model: Path) -> None:
    """And one in a circle leads nowhere, which is not inside."""
    content = (model / "tokenizer_config.json").read_bytes()
    (model / "kept").mkdir()
    (model / "kept" / "t.json").write_bytes(content)
    link(model / "tokenizer_config.json", Path("kept/t.json"))
    files = published_files(model, detect_kind(model, {}), {})
    assert files["tokenizer_config.json"].read_bytes() == content
    link(model / "a", model / "b"), link(model / "b", model / "a")
    with pytest.raises(CheckpointError, match="is a link to nowhere, outside of"):
        make_item("a", model / "a")


def test_rows_that_a_link_leads_to_are_no_dataset_of_a_run(tmp_path: Path, private: Path) -> None:
    folder = write_run(tmp_path / "runs" / "clean", recipe="clean")
    link(folder / "train.jsonl", private / "other" / "s.jsonl")
    with pytest.raises(CheckpointError, match=r"train.jsonl is a link to .*s.jsonl"):
        published_files(folder, detect_kind(folder, {}), {})


def test_a_record_that_is_a_link_is_read_by_nobody(tmp_path: Path, private: Path) -> None:
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    link(folder / "run.json", private / "other" / "run.json")
    readers: list[Callable[[], Any]] = [
        lambda: read_run(folder),
        lambda: follow_chain(folder),
        lambda: load_runs([str(folder)]),
    ]
    for read in readers:
        with pytest.raises(CheckpointError, match="the record of another run"):
            read()


@pytest.mark.parametrize("place", ["../../elsewhere/other", "{elsewhere}/other", "linked"])
def test_parents_elsewhere_on_the_disk_are_not_followed(
    tmp_path: Path, private: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Their prompts do not come into the card or the records that are published."""
    monkeypatch.chdir("/")
    parent = place.format(elsewhere=private)
    folder = write_run(tmp_path / "runs" / "a", recipe="sft", parents=[parent])
    link(folder / "linked", private / "other")
    chain = follow_chain(folder)
    assert [one.directory for one in chain.everything] == [folder] and chain.missing == [parent]
    assert pick_samples(chain) == []


def test_a_neighbour_that_is_a_link_did_not_measure_a_model(
    tmp_path: Path, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    model = write_run(tmp_path / "runs" / "a", recipe="sft")
    values = {"recipe": "generate", "parents": [str(model)], "artifacts": {"samples": "s.jsonl"}}
    write_run(private / "other", **values)
    link(model.parent / "neighbour", private / "other")
    assert follow_chain(model).evaluations == []
    beside = write_run(model.parent / "beside", **values)
    write_samples(beside / "s.jsonl", [{"step": 1, "prompt": "ours", "completion": "y"}])
    chain = follow_chain(model)
    assert [one.directory for one in chain.evaluations] == [beside]
    assert [sample.prompt for sample in pick_samples(chain)] == ["ours"]


def test_samples_that_a_link_leads_to_are_not_shown(tmp_path: Path, private: Path) -> None:
    artifacts = dict.fromkeys(("samples", "completions", "answers"), "s.jsonl")
    folder = write_run(tmp_path / "runs" / "a", recipe="sft", artifacts=artifacts)
    link(folder / "s.jsonl", private / "other" / "s.jsonl")
    assert pick_samples(follow_chain(folder)) == []
    with pytest.raises(DataError, match="outside of the run's directory"):
        load_runs([str(folder)])

    (folder / "s.jsonl").unlink()
    write_samples(folder / "s.jsonl", [{"step": 1, "prompt": "ours", "completion": "y"}])
    (report,) = load_runs([str(folder)])
    read_rows = load_recipe(ROOT / "recipes" / "diagnose.py").read_rows
    assert read_rows(report, "answers")[0]["prompt"] == "ours"
    link(folder / "s.jsonl", private / "other" / "s.jsonl")
    assert read_rows(report, "answers") == ()


def test_a_report_of_a_folder_leaves_out_what_links_lead_to(
    tmp_path: Path,
    private: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours = write_run(tmp_path / "runs" / "a", recipe="sft")
    linked = link(tmp_path / "runs" / "b", private / "other")
    link(tmp_path / "runs" / "c", private)
    assert [one.directory for one in load_runs([str(tmp_path / "runs")])] == [ours]
    assert f"{linked} is a link to {private / 'other'}, outside of" in caplog.text
    # what is named is meant
    assert [one.directory for one in load_runs([str(linked)])] == [linked]


def test_a_merge_copies_no_file_that_a_link_leads_to(
    model: Path, private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "hfstack.publishing.merging"
    monkeypatch.setattr(f"{module}.load_published", lambda *_, **__: None)
    monkeypatch.setattr(f"{module}.read_logits", lambda *_: None)
    monkeypatch.setattr(
        f"{module}.merge_into_base", lambda _: LlamaForCausalLM.from_pretrained(model)
    )
    link(model / "task.json", private / "notes.json")
    (tmp_path / "merged").mkdir()
    with pytest.raises(CheckpointError, match=r"task.json is a link to .*notes.json"):
        write_merged(model, detect_kind(model, {}), tmp_path / "merged")
    assert PRIVATE not in "".join(
        path.read_text(errors="replace") for path in (tmp_path / "merged").glob("*.json")
    )


def test_an_export_reads_no_store_that_a_link_leads_to(tmp_path: Path, private: Path) -> None:
    folder = tmp_path / "runs" / "annotate"
    folder.mkdir(parents=True)
    store = private / "feedback.sqlite"
    store.write_bytes(b"")
    link(folder / "feedback.sqlite", store)
    with pytest.raises(DataError, match=r"feedback.sqlite is a link to .*, outside of"):
        read_stores([str(folder)])
    assert store_paths([str(store)]) == [store]
