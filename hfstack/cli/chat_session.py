"""Talk to one model or two in a terminal: read, answer, obey commands.

Answers go to stdout, everything else to stderr, so that either can be redirected.
"""

import argparse
import contextlib
import dataclasses
import random
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from hfstack.cli.supervise import EXIT_INTERRUPTED
from hfstack.errors import ConfigError, DataError, HfstackError
from hfstack.logs import setup_logging
from hfstack.runs.checkpoint_files import step_of
from hfstack.tasks.causal_lm.chat_model import ChatModel, answer, fit_prompt, load_chat_model
from hfstack.tasks.causal_lm.conversation import Conversation, append_rows, preference_row
from hfstack.tasks.causal_lm.generate import Completion
from hfstack.tasks.causal_lm.sampling import SamplingArgs, check_sampling
from hfstack.upstream_defaults import hide_progress_bars, shorten_load_reports

# Line editing and history of `input`; there is none on Windows.
with contextlib.suppress(ImportError):
    import readline  # noqa: F401

_HELP = """\
/system TEXT            set the system turn; without TEXT remove it
/set temperature=0.7    set temperature, top_p, top_k, min_p, max_new_tokens or seed; alone: show
/undo                   forget the last message and its answer
/new                    forget all of them
/compare MODEL          let a second model answer too, and keep your choice as a preference pair;
                        /compare off ends it
/save FILE.jsonl        append the conversation as rows that the recipe sft reads
/help                   this text
/quit                   leave, as Ctrl-D does
A line that ends in \\ goes on in the next one. Ctrl-C stops an answer; twice at the prompt it
leaves."""
_PLAIN_HELP = "An empty line lets the model go on with its last text."

# Of ECMA-48: a model may have learned codes that move a cursor or rename a window.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def talk(args: argparse.Namespace) -> int:
    """Load the models and talk, or answer `-p` once; return the exit code."""
    setup_logging(level=30)  # warnings; what a recipe logs would stand between the answers
    if args.prompt is not None or not sys.stderr.isatty():
        hide_progress_bars()
    shorten_load_reports()

    sampling = SamplingArgs(args.temperature, args.top_p, args.top_k, args.min_p)
    check_sampling(max_new_tokens=args.max_new_tokens)
    as_chat = None if args.as_chat is None else args.as_chat == "true"
    names = [name for name in (args.model, args.compare) if name is not None]
    models = [_load(name, as_chat) for name in names]

    session = ChatSession(
        models, sampling, max_new_tokens=args.max_new_tokens, preferences=args.preferences
    )
    if args.seed is not None:
        session.set_seed(args.seed)
    if args.system is not None:
        session.set_system(args.system)
    return session.run() if args.prompt is None else session.answer_once(args.prompt)


class ChatSession:
    """A conversation with one model, or with two that answer each message both."""

    def __init__(
        self,
        models: list[ChatModel],
        sampling: SamplingArgs,
        *,
        max_new_tokens: int,
        preferences: Path,
    ) -> None:
        self.models = models
        self.sampling = sampling
        self.max_new_tokens = max_new_tokens
        self.preferences = preferences
        self.conversation = Conversation()
        self.random = random.Random()  # of which model answers first
        self.seed: int | None = None
        self._interrupted = False

    @property
    def chat(self) -> bool:
        """Return whether the first model, whose conversation it is, reads turns."""
        return self.models[0].uses_template

    def answer_once(self, prompt: str) -> int:
        """Write the answer to one message to stdout; return the exit code."""
        try:
            completion = self._answer(self.models[0], prompt)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        finally:
            _write("\n")

        if self._interrupted:
            return EXIT_INTERRUPTED
        self._note_length(self.models[0], completion)
        return 0

    def run(self) -> int:
        """Read lines until the end, and answer or obey each; return the exit code."""
        self._introduce()
        interrupts = 0
        while True:
            try:
                line = _read_message()
                interrupts = 0
            except EOFError:
                _note("")
                return 0
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts == 2:
                    _note("")
                    return 0
                _note("\n(Ctrl-C again, or Ctrl-D, leaves)")
                continue

            try:
                if line.startswith("/"):
                    if line.split()[0] in ("/quit", "/exit"):
                        return 0
                    self._obey(line)
                elif line.strip() or not self.chat:
                    self._exchange(line)
            except HfstackError as error:
                _note(" ".join(str(error).split()))
            except KeyboardInterrupt:
                _note("\n(stopped: nothing of it is kept)")

    def set_seed(self, seed: int) -> None:
        """Make the sampling from here on repeatable."""
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed must be in [0, 2**32), got {seed}")
        self.seed = seed
        torch.manual_seed(seed)
        self.random.seed(seed)

    def set_system(self, text: str) -> None:
        """Set the system turn, or remove it with an empty text."""
        if text and not self.chat:
            raise ConfigError(
                f"a system turn needs a chat template, and {self.models[0].name} continues plain "
                f"text: {self.models[0].prompt_format.reason}"
            )

        changed = dataclasses.replace(self.conversation, system=text or None)
        # A template may refuse a system turn; better now than at the next message.
        fit_prompt(self.models[0], changed.turns_with("hello"), max_new_tokens=1)
        self.conversation = changed

    def _introduce(self) -> None:
        """Say who answers, how it is asked, and how it samples."""
        for model in self.models:
            how = "with its chat template" if model.uses_template else "plain text is continued"
            room = f"{model.context:,} tokens" if model.context else "no bound"
            _note(f"{model.name}: {how}, {model.prompt_format.reason}; context: {room}")
        _note(f"sampling: {self._describe_settings()}")
        _note("/help for commands, Ctrl-D to leave")

    def _describe_settings(self) -> str:
        """Return all settings of an answer as /set takes them."""
        values = {**self.sampling.sampling(), "max_new_tokens": self.max_new_tokens}
        values |= {} if self.seed is None else {"seed": self.seed}
        return ", ".join(f"{name}={value}" for name, value in values.items())

    def _exchange(self, message: str) -> None:
        """Answer a message, by both models if there are two, and keep the exchange."""
        goes_on = not message
        if goes_on:
            message = self.conversation.last_text()

        if len(self.models) == 1:
            completion = self._answer(self.models[0], message)
            _write("\n")
            self._note_length(self.models[0], completion)
            self.conversation.keep(message, completion.completion, goes_on=goes_on)
            return

        # In an order that nobody knows: who knows which is which prefers one of them.
        shown = self.random.sample(self.models, k=2)
        answers: list[str] = []
        for number, model in enumerate(shown, 1):
            _note(f"[{number}]")
            completion = self._answer(model, message)
            _write("\n")
            self._note_length(model, completion)
            if self._interrupted:
                _note("stopped: nothing of it is kept")
                return
            answers.append(completion.completion)

        kept = self._choose(message, shown, answers)
        self.conversation.keep(message, answers[kept], goes_on=goes_on)

    def _answer(self, model: ChatModel, message: str) -> Completion:
        """Show the answer of one model to a message as it comes, and return it."""
        turns = self.conversation.turns_with(message)
        prompt = fit_prompt(model, turns, max_new_tokens=self.max_new_tokens)
        if prompt.left_out:
            _note(
                f"(the oldest {prompt.left_out} turns are left out: context of {model.context} "
                "tokens)"
            )

        with _stop_on_interrupt() as interrupted:
            completion = answer(
                model,
                prompt,
                self.sampling,
                max_new_tokens=self.max_new_tokens,
                show=_write,
                should_stop=interrupted,
            )
            self._interrupted = interrupted()
        return completion

    def _note_length(self, model: ChatModel, completion: Completion) -> None:
        """Say why an answer ends where it does, unless the model ended it."""
        if self._interrupted:
            _note("(stopped)")
        elif not completion.finished and completion.tokens >= self.max_new_tokens:
            _note(f"(truncated at max_new_tokens={self.max_new_tokens})")
        elif not completion.finished:
            _note(f"(truncated at the end of the context of {model.context} tokens)")

    def _choose(self, message: str, shown: list[ChatModel], answers: list[str]) -> int:
        """Ask which answer is better, keep the pair, and return the answer to go on with."""
        first = shown.index(self.models[0])
        if answers[0] == answers[1] or not all(text.strip() for text in answers):
            _note("(equal or empty answers make no pair)")
            return first

        try:
            choice = _read_line("better: 1 or 2 (Enter: neither)? ").strip()
        except (EOFError, KeyboardInterrupt):
            choice = ""
        names = ", ".join(f"[{number}] {model.name}" for number, model in enumerate(shown, 1))
        if choice not in ("1", "2"):
            _note(f"(no pair is kept; {names})")
            return first

        better = int(choice) - 1
        pairs = [(text, model.name) for text, model in zip(answers, shown, strict=True)]
        turns = self.conversation.turns_with(message)
        row = preference_row(turns, pairs[better], pairs[1 - better], chat=self.chat)
        append_rows(self.preferences, [row])
        _note(f"(kept in {self.preferences}; {names})")
        return better

    def _obey(self, line: str) -> None:
        """Carry out a command."""
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/system": self._system,
            "/set": self._set,
            "/undo": self._undo,
            "/new": self._new,
            "/compare": self._compare,
            "/save": self._save,
        }
        if command not in commands:
            raise ConfigError(f"no command {command!r}; there are: {' '.join(commands)} /quit")
        commands[command](rest)

    def _help(self, _: str) -> None:
        _note(_HELP if self.chat else f"{_HELP}\n{_PLAIN_HELP}")

    def _system(self, text: str) -> None:
        self.set_system(text)
        _note("(system turn set)" if text else "(no system turn)")

    def _set(self, text: str) -> None:
        if text:
            name, _, value = (part.strip() for part in text.partition("="))
            self._set_one(name, value)
        _note(self._describe_settings())

    def _set_one(self, name: str, value: str) -> None:
        """Set one setting of an answer."""
        now: dict[str, Any] = {
            **self.sampling.sampling(),
            "max_new_tokens": self.max_new_tokens,
            "seed": 0,
        }
        if name not in now:
            raise ConfigError(f"no setting {name!r}; there are: {', '.join(now)}")
        try:
            number = type(now[name])(value)
        except ValueError:
            kind = "a whole number" if isinstance(now[name], int) else "a number"
            raise ConfigError(f"{name} takes {kind}, got {value!r}: /set {name}=...") from None

        if name == "seed":
            self.set_seed(number)
        elif name == "max_new_tokens":
            check_sampling(max_new_tokens=number)
            self.max_new_tokens = number
        else:
            self.sampling = dataclasses.replace(self.sampling, **{name: number})

    def _undo(self, _: str) -> None:
        message = self.conversation.undo()
        _note("(nothing to undo)" if message is None else f"(forgotten: {message[:60]!r})")

    def _new(self, _: str) -> None:
        self.conversation = Conversation(system=self.conversation.system)
        _note("(a new conversation)")

    def _compare(self, name: str) -> None:
        if not name:
            raise ConfigError("/compare needs a model: the folder of a run, or a Hub id")
        self.models = self.models[:1]
        if name == "off":
            _note(f"({self.models[0].name} answers alone)")
            return

        self.models.append(_load(name, None))
        _note(f"(two models answer in random order; choices are kept in {self.preferences})")

    def _save(self, name: str) -> None:
        rows = self.conversation.rows(chat=self.chat)
        if not name:
            raise ConfigError("/save needs a file: /save FILE.jsonl")
        if not rows:
            raise DataError("there is nothing to save yet")
        append_rows(Path(name).expanduser(), rows)
        _note(f"({len(rows)} row{'s' * (len(rows) > 1)} appended to {name})")


def _load(name: str, as_chat: bool | None) -> ChatModel:
    """Load a model, and say so when it is a checkpoint of a run that has not finished."""
    model = load_chat_model(name, as_chat=as_chat)
    if step_of(Path(model.name)) >= 0 and Path(model.name).name not in name:
        _note(f"{name} has not finished: its newest checkpoint answers")
    return model


@contextlib.contextmanager
def _stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C was pressed inside, and end nothing.

    A second one while the model is still busy, such as with a long prompt, raises
    KeyboardInterrupt.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, previous)


def _read_message() -> str:
    """Read a message, which goes on in the next line where one ends in a backslash."""
    lines = [_read_line("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(_read_line(". "))
    return "\n".join(lines)


def _read_line(prompt: str) -> str:
    """Read a line; the prompt is shown on a terminal only."""
    shown = sys.stdin.isatty() and sys.stdout.isatty()
    return input(prompt if shown else "")


def _write(text: str) -> None:
    """Write a piece of an answer to stdout; on a terminal without control codes."""
    if text:
        sys.stdout.write(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if _is_screen() else text)
        sys.stdout.flush()


def _is_screen() -> bool:
    return sys.stdout.isatty()


def _note(text: str) -> None:
    """Write a line that is no answer to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
