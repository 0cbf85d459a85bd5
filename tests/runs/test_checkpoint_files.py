"""Only a whole checkpoint is resumed: every way that one can be torn is planted, and the one before
it is used.
"""

import collections
import hashlib
import json
import struct
import zipfile
from pathlib import Path

import pytest

from hfstack.errors import CheckpointError
from hfstack.machine_failures import says_disk_is_full
from hfstack.runs.checkpoint_files import (
    check_checkpoint,
    find_damage,
    newest_checkpoint,
    refuse_full_disk,
    remove_unfinished,
    resumable_checkpoint,
    rotate,
    size_bytes,
)
from hfstack.runs.manifest import INCOMPLETE, MANIFEST, read_manifest_settings, write_manifest


def checkpoint(folder: Path, step: int, *, manifest: bool = True, shards: int = 1) -> Path:
    """Write what a Trainer leaves, small, and its manifest."""
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with zipfile.ZipFile(path / name, "w") as archive:
            archive.writestr("data.pkl", b"x" * 100)
    names = (
        ["model.safetensors"]
        if shards == 1
        else [f"model-{n}-of-{shards}.safetensors" for n in range(shards)]
    )
    for name in names:
        header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
        (path / name).write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    if shards > 1:
        weight_map = {f"w{n}": name for n, name in enumerate(names)}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    if manifest:
        write_manifest(path, step=step, settings={"learning_rate": 0.1})
    return path


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def test_a_manifest_names_every_file(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 10, manifest=False)
    (path / "global_step10").mkdir()
    (path / "global_step10" / "zero_pp_rank_0.pt").write_bytes(b"shard of rank 0")
    (path / INCOMPLETE).touch()
    assert find_damage(path) == f"{INCOMPLETE} says that it was being written"
    write_manifest(path, step=10, world_size=2, settings={"learning_rate": 0.1})
    manifest = json.loads((path / MANIFEST).read_text())
    assert (manifest["step"], manifest["world_size"]) == (10, 2)
    assert set(manifest["files"]) == {
        "global_step10/zero_pp_rank_0.pt",
        "model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    }
    assert manifest["files"]["global_step10/zero_pp_rank_0.pt"] == [
        15,
        hashlib.blake2b(b"shard of rank 0", digest_size=16).hexdigest(),
    ]
    assert not (path / INCOMPLETE).exists(), "upstream's mark goes last"
    assert find_damage(path) is None and check_checkpoint(path) == 10
    assert read_manifest_settings(path) == {"learning_rate": 0.1}
    assert size_bytes(path) == sum(size for size, _ in manifest["files"].values())


TORN = {
    "a flipped byte": (
        lambda path: flip_a_byte(path / "model.safetensors"),
        "model.safetensors is not what was written (its blake2b differs)",
    ),
    "a truncated file": (
        lambda path: (path / "optimizer.pt").write_bytes(
            (path / "optimizer.pt").read_bytes()[:-10]
        ),
        "optimizer.pt has 204 bytes instead of 214",
    ),
    "a missing file": (lambda path: (path / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "half a state": (
        lambda path: (path / "trainer_state.json").write_text('{"glo'),
        "trainer_state.json has 5 bytes",
    ),
    "half a manifest": (
        lambda path: (path / MANIFEST).write_text('{"files": {'),
        f"{MANIFEST} is not whole",
    ),
    "a manifest of lists": (
        lambda path: (path / MANIFEST).write_text("[]"),
        f"{MANIFEST} is not whole",
    ),
    "another step's": (
        lambda path: path.rename(path.with_name("checkpoint-21")),
        "its manifest is of step 20",
    ),
    "killed before the manifest": (
        lambda path: (path / MANIFEST).unlink(),
        f"{MANIFEST}, which is written last",
    ),
    "upstream's mark": (
        lambda path: (path / INCOMPLETE).touch(),
        f"{INCOMPLETE} says that it was being written",
    ),
}


@pytest.mark.parametrize("fault", TORN)
def test_a_torn_one_is_set_aside_and_the_one_before_is_used(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole, torn = checkpoint(tmp_path, 10), checkpoint(tmp_path, 20)
    plant, message = TORN[fault]
    plant(torn)
    assert resumable_checkpoint(tmp_path, needs_manifest=True) == whole
    assert [path.name for path in tmp_path.glob("broken-*")] in (["broken-20"], ["broken-21"])
    assert (
        caplog.text.count("is torn") == 1
        and message in caplog.text
        and "set aside as broken-2" in caplog.text
    )
    assert (
        newest_checkpoint(tmp_path, needs_manifest=True) == whole and check_checkpoint(whole) == 10
    )


def test_one_from_a_newer_version_is_neither_used_nor_set_aside(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 20)
    (path / MANIFEST).write_text('{"schema": 9, "step": 20, "files": {}}')
    with pytest.raises(
        CheckpointError, match="has schema 9, this hfstack reads 1: upgrade hfstack"
    ):
        resumable_checkpoint(tmp_path, needs_manifest=True)
    assert path.is_dir()


def test_named_by_hand_a_torn_one_is_refused_in_one_line_and_stays(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 20)
    flip_a_byte(path / "optimizer.pt")
    with pytest.raises(
        CheckpointError,
        match=r"checkpoint-20 is no complete checkpoint: optimizer\.pt is not what was",
    ) as e:
        check_checkpoint(path)
    assert "\n" not in str(e.value) and path.is_dir()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("trainer_state.json", b'{"global_', "trainer_state.json is missing or torn"),
        ("optimizer.pt", b"PK\x03\x04half of a zip", "optimizer.pt is torn"),
        (
            "model-1-of-2.safetensors",
            b"\x02\x00\x00\x00\x00\x00\x00\x00{",
            "model-1-of-2.safetensors is torn",
        ),
        ("model-1-of-2.safetensors", None, "model-1-of-2.safetensors is missing"),
        ("config.json", b"{", "config.json is torn"),
    ],
)
def test_one_of_another_tool_is_judged_by_its_structure(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = checkpoint(tmp_path, 5, manifest=False, shards=2)
    assert find_damage(path) is None and check_checkpoint(path) == 5
    assert find_damage(path, needs_manifest=True) is not None, (
        "a run that writes manifests has not finished this one"
    )
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content)
    assert message in str(find_damage(path))


def test_cut_off_weights_and_a_bad_checksum_are_seen_without_a_manifest(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 5, manifest=False)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert find_damage(path) == "model.safetensors is truncated"
    other = checkpoint(tmp_path, 6, manifest=False)
    content = bytearray((other / "optimizer.pt").read_bytes())
    content[60] ^= 1
    (other / "optimizer.pt").write_bytes(bytes(content))
    assert find_damage(other) in ("optimizer.pt fails its checksum", "optimizer.pt is torn")


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        (["optimizer.pt"], "no optimizer state"),
        (["scheduler.pt"], "no scheduler state"),
        (["optimizer.pt", "scheduler.pt"], "no optimizer and no scheduler state"),
    ],
)
def test_weights_alone_are_not_resumed_from(tmp_path: Path, lost: list[str], named: str) -> None:
    path = checkpoint(tmp_path, 5, manifest=False)
    for name in lost:
        (path / name).unlink()
    write_manifest(path, step=5)
    with pytest.raises(
        CheckpointError, match=rf"{named} to continue from; .*--model_name_or_path .*checkpoint-5"
    ):
        check_checkpoint(path)


def test_a_missing_random_state_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = checkpoint(tmp_path, 5, manifest=False)
    (path / "rng_state.pth").unlink()
    write_manifest(path, step=5)
    assert check_checkpoint(path) == 5
    assert (
        "has no rng_state.pth: training continues, but dropout and shuffling will differ"
        in caplog.text
    )


def test_sharded_state_counts_as_an_optimizer(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 5, manifest=False)
    (path / "optimizer.pt").unlink()
    (path / "optimizer_0").mkdir()
    (path / "optimizer_0" / "__1_0.distcp").write_bytes(b"shard")
    write_manifest(path, step=5, world_size=2)
    assert check_checkpoint(path) == 5
    (path / "optimizer_0" / "__1_0.distcp").unlink()
    assert find_damage(path) == "optimizer_0/__1_0.distcp is missing", (
        "the shard of each process counts"
    )


def test_rotation_keeps_the_newest_whole_one_and_the_best(tmp_path: Path) -> None:
    paths = {step: checkpoint(tmp_path, step) for step in (2, 4, 6, 8)}
    assert rotate(tmp_path, keep=None) == rotate(tmp_path, keep=0) == []
    assert rotate(tmp_path, keep=2, protected=paths[2]) == [paths[6], paths[4]]
    unfinished = checkpoint(tmp_path, 10, manifest=False)
    assert rotate(tmp_path, keep=1) == [paths[2]]
    assert paths[8].is_dir() and unfinished.is_dir(), (
        "what is being written is no reason to delete the last good one"
    )


def test_rotation_deletes_nothing_while_nothing_is_whole(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path, step, manifest=False) for step in (2, 4)]
    assert rotate(tmp_path, keep=1) == [] and all(path.is_dir() for path in paths)


def test_only_the_last_start_s_broken_ones_are_kept(tmp_path: Path) -> None:
    (tmp_path / "broken-by-hand").mkdir()
    checkpoint(tmp_path, 2)
    for step in (4, 6):
        flip_a_byte(checkpoint(tmp_path, step) / "optimizer.pt")
        assert resumable_checkpoint(tmp_path, needs_manifest=True) == tmp_path / "checkpoint-2"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("broken-6", "broken-by-hand", "checkpoint-2")
    ]


def test_what_nothing_replaces_is_not_deleted(tmp_path: Path) -> None:
    """Torn weights are the best that there is where no checkpoint is whole."""
    (tmp_path / "broken-4").mkdir()
    for step in (2, 4):
        flip_a_byte(checkpoint(tmp_path, step) / "optimizer.pt")
    assert resumable_checkpoint(tmp_path, needs_manifest=True) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "broken-2",
        "broken-4",
        "broken-4-2",
    ]


def test_the_disk_must_hold_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(
        "hfstack.runs.checkpoint_files.shutil.disk_usage", lambda path: usage(0, 0, 24_000_000)
    )
    refuse_full_disk(tmp_path, parameters=1_000_000)  # weights and two moments, fp32: 12 MB each
    with pytest.raises(
        CheckpointError, match=r"two checkpoints need 23 MiB but the disk of .* has 23 MiB free"
    ):
        refuse_full_disk(tmp_path, parameters=1_000_001)
    with pytest.raises(
        CheckpointError,
        match=r"one more checkpoint needs 29 MiB but the disk of .* has 23 MiB free",
    ):
        refuse_full_disk(tmp_path, checkpoint_bytes=30_000_000)


def test_what_a_full_disk_looks_like(tmp_path: Path) -> None:
    assert says_disk_is_full(OSError(28, "No space left on device"))
    assert says_disk_is_full(
        RuntimeError(
            "[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file"
        )
    )
    assert says_disk_is_full(
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    )
    wrapped = ValueError("cannot save")
    wrapped.__cause__ = RuntimeError("I/O error: No space left on device (os error 28)")
    assert says_disk_is_full(wrapped) and not says_disk_is_full(ValueError("cannot save"))
    whole, unfinished = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4, manifest=False)
    assert remove_unfinished(tmp_path) == [unfinished] and whole.is_dir()
