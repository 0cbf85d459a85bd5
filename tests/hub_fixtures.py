"""A Hub of this machine for the tests of publishing, with a few people on it; waiting takes no
time.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.minihub import minihub
from tests.minihub_state import Hub, User

WRITER, READER, FINE, NARROW, OTHER = (
    "writer-key-1",
    "reader-key-2",
    "fine-key-3",
    "narrow-key-4",
    "other-key-5",
)
USERS = {
    WRITER: User("alice", orgs=("stories",)),
    READER: User("alice", role="read"),
    FINE: User("alice", role="fineGrained", scopes=("repo.write",)),
    NARROW: User("alice", role="fineGrained", scopes=("repo.content.read",)),
    OTHER: User("bob"),
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub that this process may talk to, as the endpoint of everything, with alice's token in the
    environment.
    """
    with minihub(USERS) as served:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        # it keeps the endpoint that it was made with
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setenv("HF_TOKEN", WRITER)
        quick = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
        monkeypatch.setattr("huggingface_hub.utils._http.time", quick)
        monkeypatch.setattr("hfstack.publishing.hub.time", quick)
        yield served
