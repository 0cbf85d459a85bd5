"""A hundred secrets in each place of a run that writes: none is on the disk, none is pushed."""

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hfstack.errors import ConfigError, DataError
from hfstack.logs import setup_logging
from hfstack.publishing.files import FileToPublish
from hfstack.publishing.secret_scan import refuse_secrets
from hfstack.runs.environment import library_versions
from hfstack.runs.record import read_run
from hfstack.runs.run import Run
from tests.planted_secrets import PLANTED

TEXTS = [text for _, text, _ in PLANTED]
SECRETS = [secret for _, _, secret in PLANTED]


@dataclass
class Settings:
    """Settings of each form."""

    note: str
    notes: list[str]
    nested: dict[str, Any]
    named: dict[str, str] = field(default_factory=dict)


def seen(root: Path) -> Iterator[str]:
    """Each secret that a file below a folder holds, as it is or as JSON would write it."""
    contents = [path.read_text(errors="replace") for path in root.rglob("*") if path.is_file()]
    for secret in SECRETS:
        if any(secret in content or json.dumps(secret)[1:-1] in content for content in contents):
            yield secret


def test_no_secret_of_a_run_reaches_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of four forms, the command, tables, inputs, artifacts, two errors and the log."""
    assert len(PLANTED) >= 100
    # The same in every run, and slow to ask for.
    monkeypatch.setattr("hfstack.runs.run.warn_outside_their_range", lambda: None)
    versions = library_versions()
    monkeypatch.setattr("hfstack.runs.run.library_versions", lambda: versions)
    log = io.StringIO()
    setup_logging()
    handler = logging.getLogger("hfstack").handlers[0]
    copy = logging.StreamHandler(log)
    copy.setFormatter(handler.formatter)
    monkeypatch.setattr(logging.getLogger("hfstack"), "handlers", [copy])

    for number, text in enumerate(TEXTS):
        monkeypatch.setattr("sys.argv", ["train.py", f"--note={text}"])
        settings = Settings(text, [text, "x"], {"a": {"b": [text]}}, {f"key{number}": text})
        kind = DataError if number % 2 else ValueError
        with pytest.raises(kind), Run.start("train.py", tmp_path / str(number), settings) as run:
            run.add_table("rows", ["text", text], [[text, 1]])
            run.add_artifact("place", f"a {text}")
            run.record.rendering = {"form": text}
            run.record_inputs(train=[{"path": text, "files": [], "note": text}])
            logging.getLogger("hfstack.x").warning("read %s", text)
            raise kind(f"401 for {text}")
        record = read_run(tmp_path / str(number))
        assert record.status == "failed" and "<redacted>" in str(record.error)

    (tmp_path / "hfstack.log").write_text(log.getvalue())
    assert log.getvalue().count("read ") == len(TEXTS)
    assert list(seen(tmp_path)) == []


@pytest.mark.parametrize(
    "name", ["README.md", "config.json", "samples.jsonl", "notes.txt", "page.html", "a.svg"]
)
def test_no_secret_is_pushed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for text, secret in zip(TEXTS, SECRETS, strict=True):
        around = "word " * 400
        shown = json.dumps({"text": around + text}) if ".json" in name else f"{around}{text}\n"
        path.write_text(shown)
        with pytest.raises(ConfigError, match="nothing was pushed") as refusal:
            refuse_secrets([FileToPublish(name, path, path.stat().st_size, "")], {})
        assert secret not in str(refusal.value)
