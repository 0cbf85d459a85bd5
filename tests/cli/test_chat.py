"""`hfstack chat` as a user starts it: mistakes before a model is loaded, and a real terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfstack.cli import main as cli
from hfstack.tokens.special_tokens import end_token_ids
from tests.tiny_chat import save_tiny_chat


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("runs/sft",), "runs/sft: no such folder"),
        (("here", "--compare", "runs/sft"), "runs/sft: no such folder"),
        (("nowhere",), "nowhere: no such folder, nor a model of"),
        (("llama-1m.json",), "llama-1m.json is an architecture, whose weights are random"),
        (("report",), "report holds no model: it is a run of report that is finished"),
        (("here", "-p", " "), "-p is empty"),
        (("here", "-p", "a", "--compare", "here"), "-p asks one model"),
        (("here", "--preferences", "pairs.txt"), "give a name that ends in .jsonl"),
        (("here", "--temprature", "1"), "unrecognized arguments: --temprature"),
        ((), "the following arguments are required: model"),
    ],
)
def test_mistakes_are_said_before_torch_is_imported(
    argv: tuple[str, ...],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    # Importing it now would fail.
    monkeypatch.setitem(sys.modules, "hfstack.cli.chat_session", None)
    for folder in ("runs", "here", "report"):
        (tmp_path / folder).mkdir()
    (tmp_path / "here" / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    (tmp_path / "report" / "run.json").write_text('{"recipe": "report", "status": "finished"}')

    assert cli.main(["chat", *argv]) == 1
    out, err = capfd.readouterr()
    assert out == "" and line in err and err.count("\n") == 1, err


class Terminal:
    """A program on a pseudo-terminal, whose screen is read until it shows something."""

    def __init__(self, *command: str, folder: Path) -> None:
        primary, secondary = pty.openpty()
        self.screen, self._read_to, self._primary = "", 0, primary
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=secondary,
            stdout=secondary,
            stderr=secondary,
            start_new_session=True,
            close_fds=True,
        )
        os.close(secondary)

    def wait_for(self, text: str) -> None:
        """Read until `text` is shown behind what was waited for before."""
        deadline = time.monotonic() + 60
        while text not in self.screen[self._read_to :]:
            # A read alone would wait for ever for what does not come.
            ready = select.select([self._primary], [], [], max(0, deadline - time.monotonic()))[0]
            assert ready, f"no {text!r} in {self.screen!r}"
            self.screen += os.read(self._primary, 4096).decode(errors="replace")
        self._read_to = self.screen.index(text, self._read_to) + len(text)

    def type(self, text: str) -> None:
        os.write(self._primary, text.encode())


def test_in_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_leaves(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = save_tiny_chat(tiny_llama, tmp_path / "model")
    # No context and no token ends the answer, so that there is time to stop it.
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    ends = [*end_token_ids(model, tokenizer), *tokenizer.all_special_ids]
    with torch.no_grad():
        model.get_output_embeddings().weight[ends] = 0.0
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 200_000
    (folder / "config.json").write_text(json.dumps(config))

    command = [sys.executable, "-m", "hfstack.cli", "chat", "model", "--max_new_tokens", "199000"]
    terminal = Terminal(*command, "--temperature", "0", folder=tmp_path)
    terminal.wait_for("/help for commands")
    terminal.wait_for("> ")
    terminal.type("The fox\n")
    terminal.wait_for("The fox\r\n")
    time.sleep(0.5)
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("(stopped)")
    terminal.wait_for("> ")

    terminal.type("/save talk.jsonl\n")
    terminal.wait_for("(1 row appended to talk.jsonl)")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=60) == 0
    assert json.loads((tmp_path / "talk.jsonl").read_text())["messages"][1]["content"]
