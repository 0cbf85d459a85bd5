"""What the doctor finds, with the network, the environment and the installed versions in the test's
hands.
"""

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hfstack.cli import doctor
from hfstack.shipped import CONSTRAINTS, CONSTRAINTS_OLDEST, TESTED_VERSIONS

SECRET = "hf_" + "q" * 34


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_TOKEN_PATH",
        "HF_ENDPOINT",
        "HF_HUB_OFFLINE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a server that answers as the Hub would; its path /down answers 503."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503 if self.path.startswith("/down") else 200)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_command_finds_this_machine_usable(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    done = subprocess.run(
        [sys.executable, "-m", "hfstack.cli", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert report["usable"] is True
    texts = [finding["text"] for finding in report["findings"]]
    assert any(text.startswith("torch 2.") for text in texts)
    assert any(text.startswith("bf16: ") for text in texts)
    assert any("cores" in text for text in texts) and any(
        text.startswith("memory: ") for text in texts
    )
    assert f"{hub} answers" in texts and "a token is present (HF_TOKEN)" in texts
    assert SECRET not in done.stdout + done.stderr


def test_text_output_ends_with_a_verdict(
    hub: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HF_ENDPOINT", hub)
    assert doctor.run_doctor([]) == 0
    text = capsys.readouterr().out
    assert text.endswith("\nready\n")
    assert [line for line in text.splitlines() if line and line[0] != " "][1:-1] == [
        "libraries",
        "tested",
        "optional",
        "machine",
        "disk",
        "hub",
    ]


def test_a_missing_library_is_a_problem_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    installed = doctor.installed_version
    monkeypatch.setattr(
        doctor, "installed_version", lambda name: None if name == "ftfy" else installed(name)
    )
    tested = doctor.tested_versions(CONSTRAINTS)["ftfy"]
    assert doctor.run_doctor([]) == 1
    text = capsys.readouterr().out
    assert f"  problem  ftfy is not installed\n           -> pip install 'ftfy=={tested}'\n" in text
    assert "HF_HUB_OFFLINE is set" in text and "1 to put right" in text


@pytest.mark.parametrize(
    ("found", "state", "text"),
    [
        ("1.16.0", "ok", "trl 1.16.0"),
        ("1.16.0+local", "ok", "trl 1.16.0+local"),
        ("1.15.0", "ok", "trl 1.15.0"),
        ("1.15.2", "note", "trl 1.15.2: within >=1.15,<1.17, but tested with 1.15.0 and 1.16.0"),
        ("1.17.0", "problem", "trl 1.17.0: hfstack asks for >=1.15,<1.17"),
        ("1.9.0", "problem", "trl 1.9.0: hfstack asks for >=1.15,<1.17"),
    ],
)
def test_versions_against_the_tested_ones(
    monkeypatch: pytest.MonkeyPatch, found: str, state: str, text: str
):
    monkeypatch.setattr(doctor, "installed_version", lambda name: found)
    finding = doctor._library("trl", ">=1.15,<1.17", ["1.15.0", "1.16.0"])
    assert (finding.state, finding.text) == (state, text)


def test_versions_that_passed_are_named_with_their_date(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    pins = dict.fromkeys(["torch", "transformers", "accelerate", "peft", "datasets"], "9.1")
    record = {
        "window": "newest",
        "tests": "whole",
        "command": ".ci/test_versions --whole newest",
        "date": "2031-05-06",
        "passed": 7,
        "skipped": 1,
        "python": "3.19.2",
        "versions": {**pins, "trl": "1.16.9"},
    }
    file = tmp_path / "tested.json"
    file.write_text(json.dumps([record]))
    newest, pinned = doctor._tested_windows(file)
    assert newest.text == (
        "2031-05-06, newest, whole suite: 7 tests pass with Python 3.19.2, torch 9.1, transformers "
        "9.1, trl 1.16.9, accelerate 9.1, peft 9.1, datasets 9.1 (.ci/test_versions --whole newest)"
    )
    trl = doctor.tested_versions(CONSTRAINTS)["trl"]
    assert f"trl {trl}, " in pinned.text and pinned.text.endswith("(make test)")

    # A version that passed is no longer untested.
    monkeypatch.setattr(doctor, "TESTED_VERSIONS", file)
    monkeypatch.setattr(doctor, "requirements", lambda: [doctor.Requirement("trl", ">=1", None)])
    monkeypatch.setattr(doctor, "installed_version", lambda name: "1.16.9")
    assert [finding.state for finding in doctor._libraries()] == ["ok"]


def test_the_record_is_of_versions_that_are_allowed():
    spans = {doctor._canonical(name): span for name, span, extra in doctor.requirements()}
    for record in doctor.read_tested_windows(TESTED_VERSIONS):
        assert record["command"].startswith(".ci/test_versions ") and record["passed"] > 100
        for name, pin in record["versions"].items():
            assert doctor.satisfies(pin, spans[doctor._canonical(name)]), (name, pin)


@pytest.mark.parametrize(
    ("found", "span", "expected"),
    [
        ("2.13.0", ">=2.8", True),
        ("2.8", ">=2.8.0", True),
        ("2.7.1", ">=2.8", False),
        ("2.13.0+cu128", ">=2.8,<2.14", True),
        ("5.25.0", ">=5.20,<5.25", False),
        ("1.0", "!=1.0", False),
        ("1.0", "", True),
        ("2.8.0a0+34c6371d24.nv25.8", ">=2.8", True),  # torch of NVIDIA's containers
    ],
)
def test_ranges(found: str, span: str, expected: bool):
    assert doctor.satisfies(found, span) is expected


def test_without_packaging_a_library_is_named_and_not_compared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "packaging", None)
    monkeypatch.setattr(doctor, "installed_version", {"trl": "1.9.0"}.get)
    there = doctor._library("trl", ">=1.15,<1.17", ["1.16.0"])
    assert (there.state, there.text) == ("note", "trl 1.9.0: not compared without packaging")
    gone = doctor._library("transformers", ">=5.20", ["5.23.0"])
    assert (gone.state, gone.text) == ("problem", "transformers is not installed")


def test_requirements_come_from_the_package():
    found = {
        requirement.name.replace("-", "_").lower(): requirement
        for requirement in doctor.requirements()
    }
    assert found["trl"].range.startswith(">=") and found["trl"].extra is None
    assert found["pytest"].extra == "dev" and found["sacrebleu"].extra in ("metrics", "dev")
    tested = doctor.tested_versions(CONSTRAINTS)
    needed = [doctor._canonical(name) for name, _, extra in doctor.requirements() if extra is None]
    assert set(needed) <= set(tested), "each dependency has a tested version"

    # what test_versions runs on is the floor of the range, or the first release within it
    for name, pin in doctor.tested_versions(CONSTRAINTS_OLDEST).items():
        span = found[name.replace("-", "_")].range
        assert doctor.satisfies(pin, span) and f">={pin}".startswith(span.split(",")[0]), name


def test_the_hub_is_named_without_its_password(hub: str):
    down = next(doctor._hub(f"{hub}/down"))
    assert down.state == "note" and down.text.endswith("/down answers, with status 503")
    away = next(doctor._hub("http://user:secret@127.0.0.1:9"))
    assert away.text.startswith("http://127.0.0.1:9 cannot be reached: ") and "secret" not in str(
        away
    )


def test_a_token_is_found_and_never_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert doctor.token_place() is None
    file = doctor.hf_home() / "token"
    file.parent.mkdir()
    file.write_text(SECRET)
    assert doctor.token_place() == str(file)
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", SECRET)
    assert doctor.token_place() == "HUGGING_FACE_HUB_TOKEN"
    assert SECRET not in "".join(map(str, doctor._hub("http://127.0.0.1:9")))


def test_a_cache_that_cannot_be_written_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file" / "hf"))
    finding = list(doctor._storage())[1]
    assert finding.state == "problem" and "cannot be written" in finding.text
    assert finding.fix and "HF_HOME" in finding.fix


def test_home_agrees_with_huggingface_hub(monkeypatch: pytest.MonkeyPatch):
    program = (
        "from huggingface_hub.constants import HF_HOME, HF_TOKEN_PATH; print(HF_HOME, "
        "HF_TOKEN_PATH, sep='\\n')"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere/cache")
    for name in ("set", "unset"):
        if name == "unset":
            monkeypatch.delenv("HF_HOME")
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == [str(doctor.hf_home()), str(doctor.hf_home() / "token")]


def test_a_gpu_that_torch_cannot_use_is_reported(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(doctor, "count_gpus", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    texts = [finding.text for finding in doctor._accelerators()]
    assert any(text.startswith("nvidia-smi shows 2 GPU(s) that torch ") for text in texts)
