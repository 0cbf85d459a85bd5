"""Publications while the network fails at random: the old one or the new one, and never between."""

import random
from pathlib import Path

import pytest

from hfstack.errors import HfstackError
from hfstack.publishing.files import FileToPublish, make_item
from hfstack.publishing.hub import HubRepo, check_pushed, find_superseded, prepare_repo, push
from hfstack.runs.rendering import PUBLICATION
from tests.hub_fixtures import WRITER, hub
from tests.minihub_state import Hub

__all__ = ["hub"]

REQUESTS = (
    *("POST .*/commit/", "POST .*/preupload/", "PUT /lfs/", "POST .*/info/lfs/", "GET .*/tree/"),
    *(
        "GET .*/resolve/",
        "HEAD .*/resolve/",
        "GET /api/models",
        "GET /api/whoami",
        "POST /api/repos",
    ),
    *("GET .*/xet", "GET ", "POST ", "PUT ", ""),
)
ANSWERS = (*("drop",) * 6, 400, 401, 403, 404, 408, 409, 412, 413, 429, 500, 502, 503, 504)


def publish(where: HubRepo, items: list[FileToPublish]) -> str:
    """Do what the recipe does from the first request to the last; return the commit."""
    parent = prepare_repo(where)
    old = find_superseded(where, parent, items, kind="causal")
    sha = push(where, items, parent=parent, message="Publish", delete=old)
    assert check_pushed(where, items, sha) == len(items)
    return sha


def make_items(folder: Path, version: int) -> list[FileToPublish]:
    """Return a publication whose files all differ from one version to the next."""
    place = folder / str(version)
    place.mkdir()
    names = ["config.json", "model.safetensors", f"only_{version}.json"]
    for name in names:
        (place / name).write_bytes(f"{name} {version} ".encode() * (400 if "model" in name else 1))
    files = ", ".join(f'"{name}": {{"bytes": 1, "sha256": "{"0" * 64}"}}' for name in names)
    (place / PUBLICATION).write_text(
        f'{{"schema": 1, "kind": "causal", "repo_type": "model", "adapter": false, '
        f'"rendering": {{}}, "check": null, "files": {{{files}}}, "number": {version}}}'
    )
    return [make_item(name, place / name) for name in (*names, PUBLICATION)]


def check_publications(hub: Hub, folder: Path, number: int) -> str:
    """Publish once, and again under random faults; return how the second one ended."""
    choose = random.Random(number)
    where = HubRepo(f"alice/model-{number}", endpoint=hub.url, token=WRITER)
    versions = [make_items(folder, version) for version in (1, 2)]
    hub.faults.clear()
    publish(where, versions[0])

    for _ in range(choose.choice((1, 1, 2, 4))):
        request = choose.choice(REQUESTS)
        hub.fail(
            request,
            choose.choice(ANSWERS),
            times=choose.choice((1, 1, 2, 5, 99)),
            after=choose.random() < 0.4 and request.startswith(("POST", "PUT")),
            headers=choose.choice(({}, {"Retry-After": "1"}, {"Retry-After": "soon"})),
        )
        hub.faults[-1].skip = choose.choice((0, 0, 1, 3))
    try:
        publish(where, versions[1])
        ending = "published"
    except HfstackError as error:
        ending = "refused"
        assert "\n" not in str(error) and str(error).strip()
    hub.faults.clear()

    # main is what it was, or what was pushed, whole
    wanted = [
        {one.path: one.source.read_bytes() for one in items} | {".gitattributes": None}
        for items in versions
    ]
    repo = hub.repo(where.repo)
    there = set(repo.head().files) | {".gitattributes"}
    states = [
        there == set(files)
        and all(
            content is None or hub.content(where.repo, name) == content
            for name, content in files.items()
        )
        for files in wanted
    ]
    assert sum(states) == 1, (number, there)
    assert states[1] or ending == "refused", number

    # and the next one is whole, made once
    publish(where, versions[1])
    assert len([each for each in repo.commits.values() if each.title == "Publish"]) == 2
    return ending


def test_publications_under_faults(hub: Hub, tmp_path: Path) -> None:
    endings = []
    for number in range(8):
        (tmp_path / str(number)).mkdir()
        endings.append(check_publications(hub, tmp_path / str(number), number))
    assert set(endings) == {"published", "refused"}


@pytest.mark.slow
def test_many_publications_under_faults(hub: Hub, tmp_path: Path) -> None:
    endings = []
    for number in range(500):
        (tmp_path / str(number)).mkdir()
        endings.append(check_publications(hub, tmp_path / str(number), number))
    print({ending: endings.count(ending) for ending in set(endings)})
    assert endings.count("published") > 100 and endings.count("refused") > 100
