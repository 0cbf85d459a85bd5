"""Pushing to a Hub: it happens once and whole, or not at all, whatever the network does."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, constants

from hfstack.errors import ConfigError, HubError
from hfstack.publishing.files import FileToPublish, make_item
from hfstack.publishing.hub import (
    HubRepo,
    check_pushed,
    find_superseded,
    find_token,
    has_xet,
    prepare_repo,
    push,
)
from hfstack.publishing.hub_errors import retry_after_s
from hfstack.runs.rendering import PUBLICATION
from tests.conftest import ROOT
from tests.hub_fixtures import FINE, NARROW, OTHER, READER, WRITER, hub
from tests.minihub_state import Hub

__all__ = ["hub"]


@pytest.fixture
def items(tmp_path: Path) -> list[FileToPublish]:
    """A small text and a large file."""
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 400)
    return [make_item(name, tmp_path / name) for name in ("config.json", "model.safetensors")]


def target(hub: Hub, token: str | None = WRITER, **changes: object) -> HubRepo:
    settings = {"repo": "alice/model", "endpoint": hub.url, "token": token} | changes
    return HubRepo(**settings)  # pyright: ignore[reportArgumentType]


def paths(hub: Hub, revision: str = "main") -> set[str]:
    return set(hub.repo("alice/model").head(revision).files)


def test_a_push_is_one_commit_that_can_be_read_back(hub: Hub, items: list[FileToPublish]):
    where = target(hub)
    parent = prepare_repo(where)
    sha = push(where, items, parent=parent, message="Publish")
    assert hub.repo("alice/model").private
    assert (
        hub.repo("alice/model").head().title == "Publish"
        and len(hub.repo("alice/model").commits) == 2
    )
    assert check_pushed(where, items, sha) == 2
    assert hub.content("alice/model", "model.safetensors") == items[1].source.read_bytes()
    assert push(where, items, parent=sha, message="again") == sha, "nothing new is no commit"


def test_large_files_go_in_parts(items: list[FileToPublish], hub: Hub):
    hub.part_bytes = 40_000
    where = target(hub)
    sha = push(where, items, parent=prepare_repo(where), message="Publish")
    assert sum("/part/" in line for line in hub.log) == 3
    assert check_pushed(where, items, sha) == 2


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("place", ["POST .*/commit/", "POST .*/preupload/", "PUT /lfs/"])
def test_what_passes_is_waited_for(hub: Hub, items: list[FileToPublish], status: int, place: str):
    where = target(hub)
    parent = prepare_repo(where)
    hub.fail(place, status, headers={"Retry-After": "1"})
    sha = push(where, items, parent=parent, message="Publish")
    assert check_pushed(where, items, sha) == 2
    assert hub.repo("alice/model").commits[sha].parent == parent
    assert hub.faults[0].times == 0


@pytest.mark.parametrize("place", ["POST .*/commit/", "PUT /lfs/"])
def test_a_broken_connection_is_tried_again(hub: Hub, items: list[FileToPublish], place: str):
    where = target(hub)
    parent = prepare_repo(where)
    hub.fail(place, "drop")
    sha = push(where, items, parent=parent, message="Publish")
    assert (
        hub.repo("alice/model").commits[sha].parent == parent
        and check_pushed(where, items, sha) == 2
    )


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: Hub, items: list[FileToPublish]):
    where = target(hub)
    parent = prepare_repo(where)
    hub.fail("POST .*/commit/", "drop", after=True)
    sha = push(where, items, parent=parent, message="Publish")
    assert hub.repo("alice/model").refs["main"] == sha
    assert len(hub.repo("alice/model").commits) == 2


def test_a_server_that_stays_broken_ends_in_one_line_and_leaves_main_alone(
    hub: Hub, items: list[FileToPublish]
):
    where = target(hub)
    parent = prepare_repo(where)
    hub.fail("POST .*/commit/", 503, times=99)
    with pytest.raises(
        HubError, match=r"alice/model: the server is in trouble.*status 503"
    ) as caught:
        push(where, items, parent=parent, message="Publish")
    assert "\n" not in str(caught.value)
    assert paths(hub) == set()
    hub.faults.clear()
    sent_before = sum(line.startswith("PUT") for line in hub.log)
    push(where, items, parent=parent, message="Publish")
    assert sum(line.startswith("PUT") for line in hub.log) == sent_before, (
        "what has arrived is not sent again"
    )


def test_somebody_elses_push_in_between_is_kept(hub: Hub, items: list[FileToPublish]):
    where = target(hub)
    parent = prepare_repo(where)
    theirs = hub.put(hub.repo("alice/model"), "main", "theirs", {"notes.txt": hub.store(b"mine")})
    with pytest.raises(HubError, match=r"main has changed since .* while this was being pushed"):
        push(where, items, parent=parent, message="Publish")
    assert hub.repo("alice/model").refs["main"] == theirs and paths(hub) == {"notes.txt"}


def test_a_file_that_differs_after_the_push_is_found(hub: Hub, items: list[FileToPublish]):
    where = target(hub)
    sha = push(where, items, parent=prepare_repo(where), message="Publish")
    hub.repo("alice/model").commits[sha].files["config.json"] = hub.store(b'{"a": 2}')
    with pytest.raises(HubError, match=r"config.json has sha256 \w{12}, pushed was \w{12}"):
        check_pushed(where, items, sha)
    del hub.repo("alice/model").commits[sha].files["model.safetensors"]
    with pytest.raises(HubError, match=r"lacks model.safetensors"):
        check_pushed(where, items[1:], sha)


def test_killed_in_mid_upload_nothing_is_seen_and_the_next_push_completes(
    hub: Hub, items: list[FileToPublish]
):
    where = target(hub)
    parent = prepare_repo(where)
    hub.fail("PUT /lfs/", "slow", seconds=30)
    program = (
        "import sys; from pathlib import Path; from hfstack.publishing.files import make_item\n"
        "from hfstack.publishing.hub import HubRepo, push\n"
        "files = [make_item(Path(p).name, Path(p)) for p in sys.argv[3:]]\n"
        "where = HubRepo('alice/model', endpoint=sys.argv[1], token='writer-key-1')\n"
        "push(where, files, parent=sys.argv[2], message='m')"
    )
    arguments = [hub.url, parent, *(str(one.source) for one in items)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", program, *arguments], env=environment)
    deadline = time.monotonic() + 60
    while not any(line.startswith("PUT /lfs/") for line in hub.log):
        assert child.poll() is None and time.monotonic() < deadline, "the upload has not begun"
        time.sleep(0.02)
    child.kill()
    assert child.wait() == -9
    assert paths(hub) == set() and len(hub.repo("alice/model").commits) == 1
    sha = push(where, items, parent=parent, message="Publish")
    assert check_pushed(where, items, sha) == 2


def test_an_endpoint_without_xet_is_served_by_lfs(
    hub: Hub, items: list[FileToPublish], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    where = target(hub)
    sha = push(where, items, parent=prepare_repo(where), message="Publish")
    assert check_pushed(where, items, sha) == 2
    assert any("xet-write-token" in line for line in hub.log), "it asks first"
    assert not has_xet(where)


def test_a_branch_is_made_and_main_stays(hub: Hub, items: list[FileToPublish]):
    where = target(hub, branch="checkpoints")
    sha = push(where, items, parent=prepare_repo(where), message="step 10")
    assert paths(hub) == set() and paths(hub, "checkpoints") == {"config.json", "model.safetensors"}
    assert prepare_repo(where) == sha


def test_old_files_go_with_the_same_commit(hub: Hub, items: list[FileToPublish]):
    where = target(hub)
    sha = push(where, items, parent=prepare_repo(where), message="Publish")
    push(where, items[:1], parent=sha, message="smaller", delete=["model.safetensors"])
    assert paths(hub) == {"config.json"}


def test_tokens_that_cannot_write_are_refused_by_kind(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    for token, words in {
        "wrong": "does not know this token: check HF_TOKEN",
        READER: "the token of alice may only read",
        NARROW: "the fine-grained token of alice may not write to repositories of alice",
        OTHER: r"alice/model: the token belongs to bob; push to bob/",
        None: "no token to push with",
    }.items():
        with pytest.raises(ConfigError, match=words):
            prepare_repo(target(hub, token))
    assert not hub.repos
    assert prepare_repo(target(hub, FINE)) and prepare_repo(target(hub, repo="stories/model"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="no token to push with: set HF_TOKEN"):
        find_token()


def test_names_that_cannot_be_pushed_to(hub: Hub):
    for name, words in {
        "model": "names no owner: write it as your_name/model",
        "alice/mo del": "alphanumeric",
        "alice/a--b": "Cannot have --",
    }.items():
        with pytest.raises(ConfigError, match=words):
            prepare_repo(target(hub, repo=name))
    hub.make("alice/model", kind="dataset")
    with pytest.raises(ConfigError, match=r"alice/model: that name is taken by a dataset of yours"):
        prepare_repo(target(hub))
    hub.make("bob/private", private=True)
    with pytest.raises(ConfigError, match=r"bob/private: the token belongs to alice"):
        prepare_repo(target(hub, repo="bob/private"))


def test_a_public_repository_is_not_taken_for_a_private_one(hub: Hub):
    hub.make("alice/model")
    with pytest.raises(ConfigError, match="is public and everybody would see"):
        prepare_repo(target(hub))
    assert prepare_repo(target(hub, private=False)) == hub.repo("alice/model").refs["main"]


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "token is not valid"), (403, "may not do that"), (404, "private, missing")],
)
def test_refusals_of_the_server_are_one_line(
    hub: Hub, items: list[FileToPublish], status: int, words: str
):
    where = target(hub)
    parent = prepare_repo(where)
    hub.fail("POST .*/commit/", status)
    with pytest.raises(HubError, match=rf"{words}.*status {status}"):
        push(where, items, parent=parent, message="Publish")
    assert hub.faults[0].times == 0 and paths(hub) == set()


def test_nobody_there_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(HubError, match=r"127\.0\.0\.1:9 cannot be reached"):
        prepare_repo(target(hub, endpoint="http://127.0.0.1:9"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="because HF_HUB_OFFLINE is set: unset it"):
        prepare_repo(target(hub))


def test_the_look_alike_hides_private_repositories(hub: Hub):
    hub.make("bob/private", private=True)
    assert not HfApi(endpoint=hub.url, token=WRITER).repo_exists("bob/private")
    assert HfApi(endpoint=hub.url, token=OTHER).repo_exists("bob/private")


def test_a_card_that_the_hub_refuses_is_one_line(hub: Hub, tmp_path: Path):
    (tmp_path / "README.md").write_text("---\nlicense: none-such\n---\n")
    where = target(hub)
    parent = prepare_repo(where)
    with pytest.raises(HubError, match=r'refuses the card: .*"license" must be one of') as caught:
        push(
            where,
            [make_item("README.md", tmp_path / "README.md")],
            parent=parent,
            message="Publish",
        )
    assert "\n" not in str(caught.value) and paths(hub) == set()


def test_what_was_pushed_is_not_read_from_this_machines_cache(
    hub: Hub, items: list[FileToPublish], tmp_path: Path
):
    where = target(hub)
    sha = push(where, items, parent=prepare_repo(where), message="Publish")
    planted = (
        Path(constants.HF_HUB_CACHE) / "models--alice--model" / "snapshots" / sha / "config.json"
    )
    planted.parent.mkdir(parents=True)
    planted.write_text("{}")
    taken = where.api.hf_hub_download(
        "alice/model", "config.json", revision=sha, local_dir=tmp_path / "local"
    )
    assert Path(taken).read_text() == "{}", "upstream takes it"
    assert check_pushed(where, items, sha) == 2


def test_what_the_endpoint_says_is_not_trusted(hub: Hub, items: list[FileToPublish]):
    """A record of an earlier publication that is none, and a wait of a year."""
    where = target(hub)
    parent = prepare_repo(where)
    repo = hub.repo("alice/model")
    for content in (b"[]", b"{", b'{"kind": "causal"}', b'{"files": 3}'):
        there = hub.put(repo, "main", "theirs", {PUBLICATION: hub.store(content)})
        with pytest.raises(ConfigError, match="alice/model has a damaged publication.json"):
            find_superseded(where, there, items, kind="causal")
    hub.fail("GET .*/tree/", "drop", times=99)
    with pytest.raises(HubError, match="cannot be reached"):
        find_superseded(where, parent, items, kind="causal")

    for asked, wait_s in (("99999999999", 300.0), ("\u00b2", 0.0), ("soon", 0.0), ("2", 2.0)):
        error = Exception()
        error.response = SimpleNamespace(headers={"Retry-After": asked})  # type: ignore[attr-defined]
        assert retry_after_s(error) == wait_s
