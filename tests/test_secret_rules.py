"""A hundred secrets of fifty kinds are found anywhere; what only looks like one stays."""

import json
import shlex
import subprocess
import sys
import time

import pytest

from hfstack.redaction import redact, redact_values
from hfstack.secret_rules import find_secrets, hide_secrets, secrets_of_environment
from tests.planted_secrets import ORDINARY, PLANTED

IDS = [f"{kind}-{number}" for number, (kind, _, _) in enumerate(PLANTED)]


def test_the_plants_are_many() -> None:
    assert len(PLANTED) >= 100 and len({kind for kind, _, _ in PLANTED}) >= 50


@pytest.mark.parametrize(("kind", "text", "secret"), PLANTED, ids=IDS)
def test_a_secret_is_hidden_in_every_place(kind: str, text: str, secret: str) -> None:
    error = ConnectionError(f"401 for {text}")
    places = [
        text,
        f"before {text} after",
        f'"{text}"',
        f"({text}), then",
        f"--note {shlex.quote(text)} --seed 1",
        repr({"note": text}),
        json.dumps({"note": text, "list": [text]}),
        json.dumps(json.dumps({"note": text})),
        repr(error),
        f"| metric | {text} |",
        f"# a line\nnote: {text}\nmore",
    ]
    for place in places:
        assert secret not in redact(place), place
    assert secret not in json.dumps(redact_values({"note": text, "nested": [{"a": (text,)}]}))
    assert any(True for _ in find_secrets(text.encode(), certain=True)), "the scan lets it pass"


@pytest.mark.parametrize("text", ORDINARY)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
    assert list(find_secrets(text.encode(), certain=True)) == []
    assert redact_values({"note": text, "list": [text]}) == {"note": text, "list": [text]}


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("password=hunter2", "password=<redacted>"),
        ("DB_PASSWORD: 'x y'", "DB_PASSWORD: '<redacted>'"),
        (
            "https://u:p@host/f?key=abc&page=2#top",
            "https://u:<redacted>@host/f?key=<redacted>&page=2#top",
        ),
        ('{\\"api_key\\": \\"x\\"}', '{\\"api_key\\": \\"<redacted>\\"}'),
        ("password = hunter2 # db", "password = <redacted> # db"),
    ],
)
def test_the_name_and_the_rest_stay(text: str, redacted: str) -> None:
    assert redact(text) == redacted
    assert redact(redacted) == redacted, "what is redacted stays as it is"


def test_a_mapping_s_key_names_a_secret() -> None:
    values = {"hub_token": "abc", "api_key": "x", "pad_token": "[PAD]", "eos_token": "</s>", "n": 1}
    hidden = {"hub_token": "<redacted>", "api_key": "<redacted>"}
    assert redact_values(values) == values | hidden


def test_values_of_the_environment_are_hidden() -> None:
    environment = {"MY_API_KEY": "correct-horse-7", "HF_TOKEN": "production", "PATH": "/usr/bin:/x"}
    known = secrets_of_environment(environment)
    assert known == {"correct-horse-7": "MY_API_KEY"}, "a word is in every text"
    assert hide_secrets("a correct-horse-7 b", known) == "a <redacted> b"


def test_odd_texts_are_read() -> None:
    assert redact("\ud800 password=x") == "\ud800 password=<redacted>"
    assert redact("") == "" and redact("\0") == "\0"


def test_a_log_line_and_a_traceback_hide_it() -> None:
    secret = PLANTED[0][2]
    code = (
        "from hfstack.logs import *\n"
        "setup_logging(); redact_tracebacks()\n"
        f"text = '{secret[:10]}' + '{secret[10:]}'\n"
        "get_logger('hfstack.x').warning('sent %s', text)\n"
        "raise ValueError(text)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and secret not in done.stderr
    assert "sent <redacted>" in done.stderr and "ValueError: <redacted>" in done.stderr
    assert "Traceback (most recent call last)" in done.stderr


def test_a_large_text_is_scanned_in_linear_time() -> None:
    """Text full of what begins like a secret and is none, and one long line: 100 MB in a minute."""
    for line in (
        b"the token = value; key: name, https://x.org/a?b=c hf_ sk- password\n",
        b"x" * 70,
    ):
        content = line * (2_000_000 // len(line))
        began = time.process_time()
        assert list(find_secrets(content, certain=True)) == []
        assert time.process_time() - began < 2
