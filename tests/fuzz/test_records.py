"""Mutated records, in every reader of them: what they say, or one line that names the file."""

import dataclasses
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfstack.disk import describe_file
from hfstack.publishing.card.author import AuthorFacts
from hfstack.publishing.card.render import render_card
from hfstack.publishing.files import PublishedKind
from hfstack.publishing.lineage import follow_chain
from hfstack.publishing.verify import check_files
from hfstack.reporting.page import render_page
from hfstack.reporting.runs import load_runs
from hfstack.reporting.scaling.read import load_rungs
from hfstack.runs.checkpoint_files import find_damage, read_step
from hfstack.runs.manifest import MANIFEST, write_manifest
from hfstack.runs.record import RunRecord, changed_files, read_run
from hfstack.runs.rendering import read_rendering
from tests.fuzz.json_values import damaged, mutated
from tests.fuzz.limits import Tally, check_many, outcome, short

FILE = {"path": "a.jsonl", "bytes": 12, "blake2b": "0" * 32}
RUN: dict[str, Any] = {
    "recipe": "sft",
    "command": "recipes/sft.py --config recipes/sft.yaml --output_dir run",
    "output_dir": "run",
    "commit": "0123456789abcdef",
    "versions": {"hfstack": "0.2.0", "torch": "2.13"},
    "python": "3.11.2",
    "hardware": {"cpu": "a", "cores": 2, "memory_gib": 3.5, "device": "cpu", "accelerators": []},
    "world_size": 1,
    "started": "2026-01-02T03:04:05+00:00",
    "ended": "2026-01-02T03:05:05+00:00",
    "config_hash": "0",
    "settings": {
        "ModelConfig": {"model_name_or_path": "user/base"},
        "DataArgs": {"datasets": [{"path": "a.jsonl"}], "max_steps": 3},
    },
    "schema": 1,
    "status": "finished",
    "duration_s": 60.5,
    "process": {"pid": 1, "host": "h", "started_ticks": 3},
    "data": [{"role": "train", "path": "a.jsonl", "files": [FILE], "rows": 9}],
    "parents": ["../other"],
    "models": [FILE],
    "rendering": {"form": "chat", "tokenizer": "0", "template": "0"},
    "metrics": {"eval_loss": 1.5, "eval_loss_low": 1.0, "eval_loss_high": 2.0, "parameters": 99},
    "tables": {"t": {"columns": ["a", "b"], "rows": [[1, "x"], [2, None]]}},
    "artifacts": {"trainer_state": "trainer_state.json", "samples": "samples.jsonl"},
    "restarts": [{"step": 2, "time": "2026-01-02T03:04:35+00:00"}],
    "outputs": [],
    "run_id": "1a2b",
    "rows": {
        "splits": {"train": {"read": 9, "left_out": {"too long": 2}, "used": 7, "made": None}},
        "columns_used": ["text"],
    },
}
LOG = [{"step": at, "loss": 3 / at, "epoch": at / 9} for at in range(1, 5)]
STATE = {"global_step": 4, "log_history": [*LOG, {"step": 4, "eval_loss": 1.5}]}
SAMPLES = [{"step": 4, "prompt": "Name a fox.", "completion": "Rusty."}]
MADE = datetime(2026, 1, 2, tzinfo=UTC)
SEEDS = st.integers(0, 2**32 - 1)


def write_all(folder: Path) -> dict[str, Path]:
    """Write one whole record of each kind; return them by name."""
    run, checkpoint, published = folder / "run", folder / "run/checkpoint-4", folder / "published"
    for place in (checkpoint, published):
        place.mkdir(parents=True, exist_ok=True)
    for name, content in {"run.json": RUN, "trainer_state.json": STATE}.items():
        (run / name).write_text(json.dumps(content))
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SAMPLES))
    (checkpoint / "trainer_state.json").write_text(json.dumps(STATE))
    write_manifest(checkpoint, step=4, settings={"learning_rate": 0.1})

    (published / "README.md").write_text("# a\n")
    (published / "weights.txt").write_text("1\n")
    outputs = [describe_file(published / "weights.txt", "weights.txt")]
    (published / "runs.json").write_text(json.dumps([RUN | {"outputs": outputs}]))
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": "0" * 64}
        for path in published.iterdir()
        if path.name != "publication.json"
    }
    publication = {"schema": 1, "kind": "causal", "repo": "a/b", "run_id": "1a2b", "files": files}
    (published / "publication.json").write_text(json.dumps(publication))
    return {
        "run": run / "run.json",
        "state": run / "trainer_state.json",
        "samples": run / "samples.jsonl",
        "checkpoint": checkpoint / "trainer_state.json",
        "manifest": checkpoint / MANIFEST,
        "publication": published / "publication.json",
        "runs": published / "runs.json",
    }


def _card(run: Path) -> str:
    chain = follow_chain(run)
    kind = PublishedKind("causal", auto_class="AutoModelForCausalLM")
    return render_card(chain, kind, AuthorFacts(), repo="a/b", made=MADE)


READERS: dict[str, tuple[Callable[[Path], Any], ...]] = {
    "run": (
        lambda path: read_run(path.parent),
        lambda path: render_page(load_runs([str(path.parent)]), title="t", made=MADE),
        lambda path: _card(path.parent),
        lambda path: read_rendering(str(path.parent)),
        lambda path: load_rungs([str(path.parent)], counted="full"),
        lambda path: changed_files(read_run(path.parent).data),
    ),
    "state": (lambda path: render_page(load_runs([str(path.parent)]), title="t", made=MADE),),
    "samples": (
        lambda path: render_page(load_runs([str(path.parent)]), title="t", made=MADE),
        lambda path: _card(path.parent),
    ),
    "checkpoint": (lambda path: find_damage(path.parent), lambda path: read_step(path.parent)),
    "manifest": (lambda path: find_damage(path.parent, needs_manifest=True),),
    "publication": (lambda path: check_files(path.parent, "a/b"),),
    "runs": (lambda path: check_files(path.parent, "a/b"),),
}


def check_record(folder: Path, name: str, number: int, tally: Tally) -> None:
    """Damage one record, as JSON or as bytes, and ask every reader of it."""
    path = write_all(folder)[name]
    content = path.read_bytes()
    if number % 4 == 0:
        content = damaged(content, number)
    else:
        lines = content.splitlines() if name == "samples" else [content]
        lines = [json.dumps(mutated(json.loads(line), number)).encode() for line in lines]
        content = b"\n".join(lines)
    path.write_bytes(content)
    found = [outcome(lambda read=read: read(path), tally) for read in READERS[name]]
    assert len(found) == len(READERS[name])
    if isinstance(found[0], RunRecord):
        held, kept = json.loads(content), dataclasses.asdict(found[0])
        known = {name: value for name, value in held.items() if name in kept}
        assert _holds(kept, known)


def _holds(kept: Any, held: Any) -> bool:
    """Return whether a value is what the file says; counts of rows also have their defaults."""
    if isinstance(kept, dict) and isinstance(held, dict):
        return all(name in kept and _holds(kept[name], value) for name, value in held.items())
    return repr(kept) == repr(held)


NAMES = st.sampled_from(sorted(READERS))


@short(80)
@given(name=NAMES, number=SEEDS)
def test_records(folder: Path, tally: Tally, name: str, number: int) -> None:
    check_record(folder, name, number, tally)


@pytest.mark.slow
def test_many_records(folder: Path, tally: Tally) -> None:
    names = sorted(READERS)
    check_many(
        3,
        tally,
        lambda choose: (choose.choice(names), choose.randrange(2**32)),
        lambda name, number: check_record(folder, name, number, tally),
    )


def test_a_record_that_had_a_message_of_two_lines(folder: Path, tally: Tally) -> None:
    check_record(folder, "state", 530227779, tally)


def test_a_run_that_is_its_own_parent_is_followed_once(folder: Path, tally: Tally) -> None:
    """Its chain once went on until the interpreter's stack ended, for five seconds."""
    path = write_all(folder)["run"]
    path.write_text(json.dumps(RUN | {"parents": [".", "../run"]}))
    chain = outcome(lambda: follow_chain(path.parent), tally)
    assert len(chain.links) == 1
    assert chain.missing == [] and tally.seconds < 1


def _replace_by(path: Path, kind: str) -> None:
    """Put something in the place of a record that can be opened, and is no record."""
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case _:
            with path.open("wb") as file:
                file.truncate(300 << 20)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
@pytest.mark.parametrize("name", sorted(READERS))
def test_what_is_no_file_is_neither_waited_for_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally, name: str, kind: str
) -> None:
    monkeypatch.setattr("hfstack.disk._PAUSES_S", ())
    path = write_all(tmp_path)[name]
    _replace_by(path, kind)
    for read in READERS[name]:
        outcome(lambda read=read: read(path), tally)
    # Nothing of 300 MiB was made room for.
    assert tally.seconds < 5 and tally.kib < 64 << 10
