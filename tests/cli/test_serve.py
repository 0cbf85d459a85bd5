"""Serving is refused in one line where it cannot be right; the server is that of transformers."""

import importlib.util
import json
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hfstack.cli import main as cli
from hfstack.cli import serve


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a model, with every package that the server needs."""
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    (tmp_path / "chat_template.jinja").touch()
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the server of transformers is started with."""
    calls: list[dict[str, Any]] = []
    module = SimpleNamespace(Serve=lambda **options: calls.append(options))
    monkeypatch.setitem(sys.modules, "transformers.cli.serve", module)
    return calls


def test_it_listens_on_this_machine_alone_and_trusts_no_code(
    model: Path, started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert cli.main(["serve", str(model), "--port", str(port)]) == 0
    wanted = {"force_model": str(model), "host": "127.0.0.1", "port": port}
    assert started == [wanted | {"trust_remote_code": False}]
    assert f"serving {model} at http://127.0.0.1:{port}/v1" in capsys.readouterr().err
    assert serve.os.environ["HF_HUB_OFFLINE"] == "1", "no request fetches another model"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "--host 0.0.0.0 needs --yes"),
        (["--port", "0"], "--host 0.0.0.0 needs --yes"),
        (["--yes", "--port", "70000"], "--port takes 1 to 65535, got 70000"),
    ],
)
def test_others_are_let_in_only_on_purpose(
    model: Path,
    started: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    line: str,
) -> None:
    monkeypatch.setattr(serve.sys, "stdin", SimpleNamespace(isatty=lambda: False))
    assert cli.main(["serve", str(model), "--host", "0.0.0.0", *flags]) == 1
    shown = capsys.readouterr().err
    assert line in shown and "whoever reaches this address can use the model" in shown
    assert started == []


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("\n", 1), ("", 1)])
def test_a_terminal_is_asked(
    model: Path,
    started: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    code: int,
) -> None:
    terminal = SimpleNamespace(isatty=lambda: True, readline=lambda: typed)
    monkeypatch.setattr(serve.sys, "stdin", terminal)
    monkeypatch.setattr(serve, "_refuse_used_port", lambda host, port: None)
    assert cli.main(["serve", str(model), "--host", "0.0.0.0"]) == code
    assert len(started) == 1 - code


def test_a_used_port_an_adapter_and_a_missing_package_are_one_line(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = str(used.getsockname()[1])
        assert cli.main(["serve", str(model), "--port", port]) == 1
    assert f"--port {port}: Address already in use; choose another" in capsys.readouterr().err

    (model / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM"}')
    (model / "config.json").unlink()
    assert cli.main(["serve", str(model)]) == 1
    assert "is an adapter, and a whole model is served" in capsys.readouterr().err

    (model / "adapter_config.json").unlink()
    (model / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["serve", str(model)]) == 1
    assert "pip install 'hfstack[serve]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("openai") is None, reason="the extra `serve` is not installed"
)
def test_the_real_server_answers_as_chat_does(tiny_llama: Path, tmp_path: Path) -> None:
    """One start of the server of transformers, and a conversation through its endpoint."""
    import threading
    import time
    import urllib.request

    from hfstack.cli.serve import run_serve
    from hfstack.tasks.causal_lm.chat_model import answer, fit_prompt, load_chat_model
    from hfstack.tasks.causal_lm.sampling import SamplingArgs
    from tests.tiny_chat import save_tiny_chat

    folder = save_tiny_chat(tiny_llama, tmp_path / "chat")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    args = SimpleNamespace(model=str(folder), host="127.0.0.1", port=port, yes=False)
    threading.Thread(target=run_serve, args=(args,), daemon=True).start()

    turns = [{"role": "user", "content": "Where does the fox live?"}]
    body = {"model": str(folder), "messages": turns, "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    for _ in range(120):
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                served = json.load(response)
            break
        except OSError:
            time.sleep(0.5)

    chat = load_chat_model(str(folder))
    prompt = fit_prompt(chat, turns, max_new_tokens=8)
    own = answer(
        chat,
        prompt,
        SamplingArgs(temperature=0),
        max_new_tokens=8,
        show=lambda text: None,
        should_stop=lambda: False,
    )
    assert served["choices"][0]["message"]["content"].strip() == own.completion.strip()
    assert served["usage"]["prompt_tokens"] == len(prompt.token_ids)
