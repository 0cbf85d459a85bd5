"""No code of a model runs, with and without a terminal, and no request that nobody asked for."""

import ast
import http.server
import json
import logging
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from hfstack.config import parse
from hfstack.errors import ConfigError
from hfstack.upstream_defaults import shorten_load_reports
from tests.tiny_encoder import save_tiny_bert

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path for name in ("hfstack", "recipes", "benchmarks") for path in (ROOT / name).rglob("*.py")
)
# Weights of adapters: their configuration has no place for code.
ADAPTERS = {"PeftModel", "PeftConfig"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Each call that may load a class by the name in a configuration."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            receiver = ast.unparse(node.func.value)
            is_auto = node.func.attr == "from_config" and "auto" in receiver.lower()
            if node.func.attr == "from_pretrained" or is_auto:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {receiver}", node


def test_every_call_that_loads_a_model_refuses_its_code() -> None:
    found = list(calls())
    assert len(found) > 30
    for place, call in found:
        if place.rsplit(" ", 1)[1] in ADAPTERS:
            continue
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("trust_remote_code") == "False", place


@dataclass
class Settings:
    """Settings with upstream's own names."""

    trust_remote_code: bool = False
    """Run it."""
    model_init_kwargs: dict[str, Any] = field(default_factory=dict)
    """Handed on."""


@pytest.mark.parametrize(
    "argv",
    [
        ["--trust_remote_code"],
        ["--trust_remote_code", "true"],
        ["--model_init_kwargs", '{"trust_remote_code": true}'],
    ],
)
def test_asking_for_it_is_refused_in_one_line(argv: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trust_remote_code.* is refused: no code") as refusal:
        parse(Settings, argv=argv)
    assert "\n" not in str(refusal.value)
    config = tmp_path / "a.yaml"
    config.write_text("trust_remote_code: true\n")
    with pytest.raises(ConfigError, match="is refused"):
        parse(Settings, argv=["--config", str(config)])
    assert parse(Settings, argv=["--trust_remote_code", "false"])[0].trust_remote_code is False


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A model folder whose configuration and tokenizer name code that leaves a file behind."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\nclass Model: ...\n"
    (folder / "code.py").write_text(code)
    names = (
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForSequenceClassification",
    )
    auto_map = dict.fromkeys(names, "code.Model")
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": auto_map}))
    tokenizer = {"auto_map": {"AutoTokenizer": ["code.Model", "code.Model"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def test_at_a_terminal_nothing_is_asked_and_nothing_runs(hostile: Path, tmp_path: Path) -> None:
    """Upstream asks [y/N] at a terminal, and a `y` runs the code: here nobody can answer."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        json.dumps({"prompt": "a", "completion": "b", "chosen": "a b", "rejected": "a c"}) + "\n"
    )
    main, terminal = pty.openpty()
    os.write(main, b"y\ny\ny\n")
    command = [sys.executable, str(ROOT / "recipes" / "sft.py"), "--datasets", str(rows)]
    command += ["--model_name_or_path", str(hostile), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(
        command,
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    os.close(main)
    os.close(terminal)
    assert done.returncode == 1, done.stdout
    assert "[y/N]" not in done.stdout and not (tmp_path / "ran").exists()
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("sft.py: ") and "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("asked", "paths"), [(None, set()), ("0", {"/api/telemetry/trl/SFTTrainer"})]
)
def test_nobody_is_told_of_a_run_unless_the_user_says_so(
    asked: str | None, paths: set[str]
) -> None:
    """A Hub of our own sees every request: TRL's telemetry, and the question for agents."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(404)
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Nothing on the screen."""

    code = (
        "import sys\n"
        "from huggingface_hub.utils import send_telemetry, build_hf_headers\n"
        "from huggingface_hub.utils import _telemetry\n"
        "from hfstack.config import command_line\n"
        "def main():\n"
        "    send_telemetry('trl/SFTTrainer', library_name='trl')\n"
        "    build_hf_headers()\n"
        "    _telemetry._TELEMETRY_QUEUE.join()\n"
        "command_line(main)\n"
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "CI")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "PYTHONPATH": str(ROOT),
    }
    environment |= {"HF_HUB_DISABLE_TELEMETRY": asked} if asked else {}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    assert {path for path in seen if "telemetry" in path} == paths
    assert bool(seen) == bool(paths)


def test_a_load_report_is_a_line_of_what_is_not_used(tmp_path: Path) -> None:
    folder, logged = save_tiny_bert(tmp_path / "model"), _Messages()
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addHandler(logged)
    try:
        # the head for masks has no place in a classifier, whose own head is new
        shorten_load_reports()
        AutoModelForSequenceClassification.from_pretrained(folder)
        assert len(logged.texts) == 1 and "\n" not in logged.texts[0]
        assert "a BertForSequenceClassification has no use for these weights" in logged.texts[0]
        assert "cls.predictions.bias" in logged.texts[0]
        assert "classifier" not in logged.texts[0]  # which whoever loads says

        # weights of another shape are not to be missed
        AutoModelForMaskedLM.from_pretrained(folder, hidden_size=16, ignore_mismatched_sizes=True)
        assert "MISMATCH" in logged.texts[1]
    finally:
        logger.removeHandler(logged)


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
