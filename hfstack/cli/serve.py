"""Answer requests in the form of OpenAI's API: `hfstack serve MODEL`.

The server is that of transformers. Only the standard library is imported here until a model, a
port and an address are found to be right.
"""

import argparse
import importlib.util
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from hfstack.cli.supervise import say
from hfstack.errors import CheckpointError, ConfigError, MissingExtraError
from hfstack.machine import LOOPBACK_NAMES
from hfstack.runs.model_folder import find_causal_lm, refuse_architecture

_ABOUT_SERVING = """\
Serve what you trained to programs that speak to OpenAI's API: /v1/chat/completions with the chat
template, /v1/completions with plain text. It is the server of transformers, on this machine alone
unless --host says otherwise. Code that a model brings along is never run.
"""
_EXAMPLES = """\
examples:
  hfstack serve runs/sft
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"model": "runs/sft", "messages": [{"role": "user", "content": "Write a story."}]}'
"""
_PACKAGES = ("fastapi", "uvicorn", "pydantic", "openai")


def add_serve(verbs: Any) -> None:
    """Add the verb `serve` with its options to the command line."""
    parser = verbs.add_parser(
        "serve",
        help="serve a model to programs, in the form of OpenAI's API",
        description=_ABOUT_SERVING,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    parser.add_argument("model", help="folder of a run or of a checkpoint, or a Hub id")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address that is listened at (default %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="default %(default)s")
    parser.add_argument(
        "--yes", action="store_true", help="do not ask whether others may use the model"
    )


def run_serve(args: argparse.Namespace) -> int:
    """Check the model, the address and the packages, then serve until Ctrl-C.

    Raises:
        HfstackError: there is no such model, the address is in use or not confirmed, or a package
            is missing.
    """
    # Late, because it is no part of the standard library; it imports no torch.
    from hfstack.runs.model_names import refuse_missing_model

    refuse_architecture(args.model)
    folder = find_causal_lm(args.model)
    refuse_missing_model(folder)
    _refuse_adapter(folder)
    if any(importlib.util.find_spec(package) is None for package in _PACKAGES):
        missing = next(one for one in _PACKAGES if importlib.util.find_spec(one) is None)
        raise MissingExtraError(missing, "serve")
    _confirm_address(args.host, agreed=args.yes)
    _refuse_used_port(args.host, args.port)

    local = Path(folder).is_dir()
    if local:
        # A request may name another model: none is fetched for it.
        os.environ["HF_HUB_OFFLINE"] = "1"
    host = f"[{args.host}]" if ":" in args.host else args.host
    say(f"serving {folder} at http://{host}:{args.port}/v1; Ctrl-C ends it")
    if local and not _has_chat_template(Path(folder)):
        say("its tokenizer has no chat template: ask at /v1/completions")

    # Late, because it imports torch.
    from transformers.cli.serve import Serve

    Serve(force_model=folder, host=args.host, port=args.port, trust_remote_code=False)
    return 0


def _refuse_adapter(folder: str) -> None:
    """Raise CheckpointError for an adapter, which the server cannot load."""
    path = Path(folder)
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is an adapter, and a whole model is served: train with --merge_adapter true "
            f"(hfstack chat {folder} takes it as it is)"
        )


def _confirm_address(host: str, *, agreed: bool) -> None:
    """Ask before others than this machine may use the model.

    Raises:
        ConfigError: the answer is no, or nobody is there to answer.
    """
    if host in LOOPBACK_NAMES:
        return
    say(f"--host {host}: whoever reaches this address can use the model, without a password")
    if agreed:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"--host {host} needs --yes where there is no terminal to ask at")
    sys.stderr.write("serve it to others? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing is served; leave out --host to serve on this machine alone")


def _refuse_used_port(host: str, port: int) -> None:
    """Raise ConfigError for an address that cannot be listened at."""
    if not 0 < port < 2**16:
        raise ConfigError(f"--port takes 1 to 65535, got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"--host {host} --port {port}: {reason}; choose another --port"
            ) from None


def _has_chat_template(folder: Path) -> bool:
    """Return whether the tokenizer in a folder has a chat template."""
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))
