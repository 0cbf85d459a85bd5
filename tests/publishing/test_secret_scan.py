"""Secrets are found by shape in texts and by value in every file; sentences about passwords are
left alone.
"""

from pathlib import Path

import pytest

from hfstack.publishing.secret_scan import find_secret, hide_known, known_secrets


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("token: hf_" + "aB3" * 12, "a Hugging Face token"),
        ("api_org_" + "aB3" * 12, "a Hugging Face token"),
        ("key sk-proj-" + "x1" * 12, "an OpenAI-style key"),
        ("ghp_" + "a1" * 18, "a GitHub token"),
        ("AKIA" + "A1" * 8, "an AWS access key"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("xoxb-" + "1" * 12, "a Slack token"),
        ("from huggingface_hub import hf_hub_download; hf_transfer", None),
        ("The password is the name of the dragon, and the secret: kindness.", None),
        ("risk-taking behaviours and task-specific-parameters-of-models", None),
    ],
)
def test_shapes(tmp_path: Path, text: str, what: str | None):
    path = tmp_path / "notes.txt"
    path.write_text("a\n" * 1000 + text)
    assert find_secret(path, {}) == what


def test_values_are_found_across_chunks_and_in_binary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("hfstack.publishing.secret_scan._SCAN_BYTES", 64)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\0" * 60 + b"correct-horse" + b"\0" * 60)
    assert find_secret(path, {"correct-horse": "MY_PASSWORD"}) == "the value of MY_PASSWORD"
    assert find_secret(path, {"battery-staple": "MY_PASSWORD"}) is None
    (tmp_path / "empty").write_bytes(b"")
    assert find_secret(tmp_path / "empty", {"correct-horse": "MY_PASSWORD"}) is None


def test_what_counts_as_a_secret_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hfstack.publishing.secret_scan.get_token", lambda: "x")
    folder = tmp_path / "a-folder-name"
    folder.mkdir()
    environment = {
        "WANDB_API_KEY": "0123456789",
        "DB_PASSWORD": "hunter2hunter2",
        "MY_TOKEN": "short",
        "HOME": "/home-of-people",
        "TOKEN": str(folder),
        "TOKENIZERS_PARALLELISM": "false-or-true",
    }
    assert set(known_secrets(environment).values()) == {"WANDB_API_KEY", "DB_PASSWORD"}, (
        "one letter is in every text"
    )
    assert hide_known("a 0123456789 b", known_secrets(environment)) == "a <redacted> b"
    monkeypatch.setattr(
        "hfstack.publishing.secret_scan.get_token", lambda: "saved-by-hf-auth-login"
    )
    assert known_secrets({}) == {"saved-by-hf-auth-login": "the Hub token of this machine"}
