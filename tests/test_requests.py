"""Recipes ask nobody for anything: a Hub of our own sees every request, and sees none."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
QUIET = ["--max_steps", "1", "--report_to", "none", "--bf16", "false", "--eval_fraction", "0.25"]


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """The address of a server that has nothing, and the requests that it has seen."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(f"{self.command} {self.path}")
            self.send_response(404)
            self.end_headers()

        do_HEAD = do_POST = do_GET  # noqa: N815 - the names that http.server calls

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Nothing on the screen."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def test_training_and_a_dry_run_of_publish_send_nothing(
    hub: tuple[str, list[str]], tiny_llama: Path, tmp_path: Path
) -> None:
    endpoint, seen = hub
    names = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "CI", "HF_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path)}

    rows = tmp_path / "rows.jsonl"
    texts = [f"The fox number {number} met the owl." for number in range(16)]
    rows.write_text(
        "".join(
            json.dumps({"prompt": text, "completion": "kind", "text": text, "label": n % 2}) + "\n"
            for n, text in enumerate(texts)
        )
    )

    def run(recipe: str, *flags: str) -> None:
        command = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *flags]
        command += ["--output_dir", str(tmp_path / recipe)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        assert seen == [], recipe

    given = ["--model_name_or_path", str(tiny_llama), "--datasets", str(rows), *QUIET]
    run("sft", *given, "--max_length", "128", "--as_chat", "false", "--answer_tokens", "2")
    run("classify", *given)
    ppo = ["--as_chat", "false", "--max_completion_length", "4", "--total_episodes", "8"]
    run("ppo", *given[:4], *given[6:], *ppo, "--per_device_train_batch_size", "4")
    run("publish", "--run", str(tmp_path / "sft"), "--repo", "me/fox", "--dry_run")
