"""Secrets are redacted, whatever the quotes around them; what only looks like one stays."""

import json

import pytest

from hfstack.redaction import redact, redact_values

TOKEN = "hf_" + "a1B2c3D4" * 4


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"--note {TOKEN} end", "--note <redacted> end"),
        ("--hub_token abc --seed 1", "--hub_token <redacted> --seed 1"),
        ('password="hunter two" ok', 'password="<redacted>" ok'),
        ("api-key: 'x' ok", "api-key: '<redacted>' ok"),
        ("sk-" + "a" * 20, "<redacted>"),
    ],
)
def test_secrets_are_redacted(text: str, redacted: str) -> None:
    assert redact(text) == redacted


def test_ordinary_words_stay() -> None:
    for text in (
        "an eos_token <|endoftext|>",
        "token embeddings",
        "half_life",
        "--tokenizer_name_or_path runs/tok",
    ):
        assert redact(text) == text


def test_values_are_redacted_before_they_are_json() -> None:
    values = {"prompts": ['password="hunter2" ok', 3, None], "nested": {"a": (TOKEN,)}}
    assert json.loads(json.dumps(redact_values(values))) == {
        "prompts": ['password="<redacted>" ok', 3, None],
        "nested": {"a": ["<redacted>"]},
    }
