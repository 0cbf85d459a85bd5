"""What is typed in a chat, obeyed or answered, in this process; answers are greedy."""

import argparse
import io
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hfstack.cli import chat_session
from hfstack.cli.chat_session import talk
from tests.tiny_chat import save_tiny_chat


@pytest.fixture(scope="module")
def chat_folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_chat(tiny_llama, tmp_path_factory.mktemp("chat")))


@pytest.fixture
def type_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Talk by the lines given, and return exit code, stdout and stderr without the introduction.

    An exception class among the lines is raised in place of a line.
    """
    monkeypatch.chdir(tmp_path)

    def run(folder: str, *lines: Any, **options: Any) -> tuple[int, list[str], list[str]]:
        rest: Iterator[Any] = iter([*lines, EOFError])

        def read(prompt: str) -> str:
            line = next(rest)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("builtins.input", read)
        settings: dict[str, Any] = {
            **dict.fromkeys(("prompt", "system", "compare", "as_chat", "seed")),
            "preferences": Path("pairs.jsonl"),
            "max_new_tokens": 4,
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
        }
        code = talk(argparse.Namespace(model=folder, **settings | options))
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return run


def test_it_introduces_itself_answers_and_leaves_at_the_end(
    chat_folder: str, type_lines: Any
) -> None:
    code, out, err = type_lines(chat_folder, "The fox", "")
    assert code == 0 and len(out) == 1, "an empty line asks nothing"
    assert err[:3] == [
        f"{chat_folder}: with its chat template, its tokenizer has a chat template; context: 128 "
        "tokens",
        "sampling: temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, max_new_tokens=4",
        "/help for commands, Ctrl-D to leave",
    ]
    assert err[3] == "(truncated at max_new_tokens=4)"


def test_once_is_the_same_answer_and_nothing_else_on_stdout(
    chat_folder: str, type_lines: Any
) -> None:
    _, talked, _ = type_lines(chat_folder, "The fox")
    code, out, err = type_lines(chat_folder, prompt="The fox")
    assert (code, out, err) == (0, talked, ["(truncated at max_new_tokens=4)"])


def test_undo_and_new_take_back_what_was_said(chat_folder: str, type_lines: Any) -> None:
    _, once, _ = type_lines(chat_folder, "The fox")
    _, out, err = type_lines(chat_folder, "The owl", "/undo", "The fox", "/new", "The fox", "/undo")
    assert out[1:] == once * 2
    assert "(forgotten: 'The owl')" in err and "(a new conversation)" in err
    assert type_lines(chat_folder, "/undo")[2][3] == "(nothing to undo)"


def test_settings_are_shown_set_and_checked(chat_folder: str, type_lines: Any) -> None:
    lines = ["/set", "/set temperature=0.5", "/set max_new_tokens = 2", "/set seed=7", "a"]
    wrong = ["/set top_p=2", "/set top_k=x", "/set heat=1", "/set max_new_tokens=0", "/what"]
    _, out, err = type_lines(chat_folder, *lines, *wrong)
    assert len(out) == 1
    assert err[4].startswith("temperature=0.5, top_p=1.0,")
    assert err[6].endswith("max_new_tokens=2, seed=7")
    assert err[7] == "(truncated at max_new_tokens=2)"
    assert err[8:13] == [
        "--top_p must be in (0, 1], got 2.0",
        "top_k takes a whole number, got 'x': /set top_k=...",
        "no setting 'heat'; there are: temperature, top_p, top_k, min_p, max_new_tokens, seed",
        "--max_new_tokens must be at least 1, got 0",
        "no command '/what'; there are: /help /system /set /undo /new /compare /save /quit",
    ]


def test_a_seed_repeats_the_answers(chat_folder: str, type_lines: Any) -> None:
    answers = [
        type_lines(chat_folder, "a", "b", seed=seed, temperature=1.0)[1] for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


def test_a_system_turn_needs_a_template_that_takes_one(
    chat_folder: str, tiny_llama: Path, type_lines: Any
) -> None:
    _, out, err = type_lines(chat_folder, "/system be kind", "a", "/new", "/system", "a")
    assert "(system turn set)" in err and "(no system turn)" in err and out[0] != out[1]
    _, _, err = type_lines(str(tiny_llama), "/system be kind")
    assert "a system turn needs a chat template" in err[3]
    assert "its tokenizer has no chat template" in err[3]


def test_plain_text_goes_on_at_an_empty_line_and_is_saved_whole(
    tiny_llama: Path, type_lines: Any, tmp_path: Path
) -> None:
    lines = ["", "Once", "", "The owl", "/save texts.jsonl", "/save", "/save x.txt", "/help"]
    _, out, err = type_lines(str(tiny_llama), *lines)
    assert "plain text is continued, its tokenizer has no chat template" in err[0]
    assert "there is no text yet to continue" in err
    assert "(2 rows appended to texts.jsonl)" in err
    assert "/save needs a file: /save FILE.jsonl" in err
    assert any("give a name that ends in .jsonl" in line for line in err)
    assert "An empty line lets the model go on with its last text." in err

    texts = [json.loads(line)["text"] for line in Path("texts.jsonl").read_text().splitlines()]
    assert texts[0] == f"Once{out[0]}{out[1]}" and texts[1] == f"The owl{out[2]}"


def test_a_conversation_is_saved_as_messages(chat_folder: str, type_lines: Any) -> None:
    _, out, err = type_lines(chat_folder, "/save a.jsonl", "x\\", "y", "/save a.jsonl")
    assert err[3] == "there is nothing to save yet"
    turns = json.loads(Path("a.jsonl").read_text())["messages"]
    assert [turn["content"] for turn in turns] == ["x\ny", out[0]]


@pytest.fixture(scope="module")
def other_folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_chat(tiny_llama, tmp_path_factory.mktemp("other"), seed=1))


def test_a_choice_between_two_models_is_kept_as_a_pair(
    chat_folder: str, other_folder: str, type_lines: Any
) -> None:
    # An answer's text may break its line, so answers are compared as the file has them.
    lines = ["The fox", "2", "The owl", "", "/compare off", "a", "/save talk.jsonl"]
    _, _, err = type_lines(chat_folder, f"/compare {other_folder}", *lines, seed=0)
    pairs = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == 1, "the second message got no choice"
    assert pairs[0]["prompt"] == [{"role": "user", "content": "The fox"}]
    assert {pairs[0]["chosen_model"], pairs[0]["rejected_model"]} == {chat_folder, other_folder}
    assert pairs[0]["chosen"][0]["content"] != pairs[0]["rejected"][0]["content"]

    names = f"[2] {pairs[0]['chosen_model']}"
    assert any(line.startswith("(kept in pairs.jsonl;") and names in line for line in err)
    assert any(line.startswith("(no pair is kept;") for line in err)
    turns = json.loads(Path("talk.jsonl").read_text())["messages"]
    assert turns[1] == pairs[0]["chosen"][0], "the conversation goes on with the chosen answer"
    assert len(turns) == 6


def test_equal_answers_make_no_pair(chat_folder: str, type_lines: Any) -> None:
    _, _, err = type_lines(chat_folder, "a", compare=chat_folder)
    assert "(equal or empty answers make no pair)" in err
    assert not Path("pairs.jsonl").exists()


def test_two_ctrl_c_at_the_prompt_leave(chat_folder: str, type_lines: Any) -> None:
    stop = KeyboardInterrupt
    code, out, err = type_lines(chat_folder, stop, "a", stop, stop, "b")
    assert code == 0 and len(out) == 1, "a message between the two makes them two first ones"
    assert err.count("(Ctrl-C again, or Ctrl-D, leaves)") == 2


def test_ctrl_c_stops_an_answer_and_not_the_program(
    chat_folder: str, type_lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def interrupt(text: str) -> None:
        shown.append(text)
        if len(shown) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(chat_session, "_write", interrupt)
    code, _, err = type_lines(chat_folder, "The fox", "/save a.jsonl", max_new_tokens=100)
    assert code == 0 and err[3] == "(stopped)"
    answer = json.loads(Path("a.jsonl").read_text())["messages"][1]["content"]
    assert answer == "".join(shown).removesuffix("\n") and len(answer) < 40, "what came is kept"

    shown.clear()
    assert type_lines(chat_folder, prompt="The fox", max_new_tokens=100)[0] == 130


def test_on_a_terminal_an_answer_moves_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Screen())
    chat_session._write("a\x1b[2J\tb\n\x07")
    assert sys.stdout.getvalue() == "a\ufffd[2J\tb\n\ufffd"  # type: ignore[attr-defined]


def test_the_oldest_turns_are_left_out_and_it_is_said(chat_folder: str, type_lines: Any) -> None:
    _, _, err = type_lines(chat_folder, *["The fox ran up the hill"] * 12)
    assert any("turns are left out: context of 128 tokens" in line for line in err)
    assert "leaves no room for an answer" in type_lines(chat_folder, "xyz " * 100)[2][3]
