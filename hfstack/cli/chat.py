"""Talk to a model in the terminal: `hfstack chat MODEL`.

Only the standard library is imported here: a mistake is said, and the help is printed, before
torch is imported. What loads a model is in chat_session.
"""

import argparse
from pathlib import Path
from typing import Any

from hfstack.cli.start import cheaper_imports
from hfstack.errors import ConfigError
from hfstack.runs.model_folder import find_causal_lm, refuse_architecture

_DESCRIPTION = """\
Talk to what you trained: the folder of a run, a checkpoint, an adapter, or a model of the Hub.
Answers come token by token. The chat template is used where the model was trained with it; a model
of plain text continues what you write. Type /help inside for what can be changed and kept.
"""
_USAGE = """\
examples:
  hfstack chat runs/sft
  hfstack chat runs/sft -p "Write a story about a fox." --temperature 0
  hfstack chat runs/dpo --compare runs/sft --preferences my_pairs.jsonl
"""


def add_chat(verbs: Any) -> None:
    """Add the verb `chat` with its options to the command line."""
    parser = verbs.add_parser(
        "chat",
        help="talk to a model that you trained",
        description=_DESCRIPTION,
        epilog=_USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    parser.add_argument("model", help="folder of a run, checkpoint or adapter, or a Hub id")
    parser.add_argument(
        "-p", "--prompt", help="answer this once and leave; stdout has the answer only"
    )
    parser.add_argument("--system", help="system turn, for templates that have one")
    parser.add_argument("--compare", metavar="MODEL", help="another model that answers as well")
    parser.add_argument(
        "--preferences",
        type=Path,
        default=Path("preferences.jsonl"),
        help="where the choices between two models are kept (default %(default)s)",
    )

    parser.add_argument(
        "--as_chat",
        choices=("true", "false"),
        help="use the chat template or plain text (default: as it was trained)",
    )
    parser.add_argument("--max_new_tokens", type=int, default=512, help="default %(default)s")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0 for the likeliest (default %(default)s)"
    )
    parser.add_argument("--top_p", type=float, default=1.0, help="default %(default)s, all tokens")
    parser.add_argument("--top_k", type=int, default=0, help="default %(default)s, all tokens")
    parser.add_argument("--min_p", type=float, default=0.0, help="default %(default)s, all tokens")
    parser.add_argument("--seed", type=int, help="of the sampling (default: another each time)")


def run_chat(args: argparse.Namespace) -> int:
    """Check what can be checked without a model, then load it and talk.

    Raises:
        HfstackError: a model is not there or of another kind, or an option is out of range.
    """
    # Late, because it is no part of the standard library; it imports no torch.
    from hfstack.runs.model_names import refuse_missing_model

    for name in (args.model, args.compare):
        if name is not None:
            refuse_architecture(name)
            find_causal_lm(name)
            refuse_missing_model(name)

    if args.prompt is not None and not args.prompt.strip():
        raise ConfigError("-p is empty: give it a question, or leave it out to talk")
    if args.prompt is not None and args.compare is not None:
        raise ConfigError("-p asks one model: leave out --compare, or talk without -p")
    if args.preferences.suffix != ".jsonl":
        raise ConfigError(f"--preferences {args.preferences}: give a name that ends in .jsonl")

    # Late, because it imports torch.
    with cheaper_imports():
        from hfstack.cli.chat_session import talk

    return talk(args)
