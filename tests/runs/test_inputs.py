"""What a run has read is a part of what it is: compared on resume and on "already finished"."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER_WEIGHTS
from peft.utils import WEIGHTS_NAME as ADAPTER_BIN
from transformers import tokenization_utils_base, utils

from hfstack import disk
from hfstack.config import parse
from hfstack.errors import AlreadyFinished, CheckpointError, ConfigError, Preempted
from hfstack.models.contents import CLASSIFIER_FILE
from hfstack.recipe_settings import load_recipe, settings_classes
from hfstack.runs import inputs
from hfstack.runs.record import read_run
from hfstack.runs.run import Run
from tests.conftest import ROOT
from tests.faults import Faults

# What each recipe that trains reads, beside its data and its own code.
TRAINING: dict[str, tuple[str, ...]] = {
    "answer": ("model_name_or_path",),
    "classify": ("model_name_or_path", "tokenizer_name_or_path", "teacher_model"),
    "distill": ("model_name_or_path", "tokenizer_name_or_path", "teacher_model"),
    "dpo": ("model_name_or_path",),
    "embed": ("model_name_or_path",),
    "grpo": ("model_name_or_path", "reward_model"),
    "kto": ("model_name_or_path",),
    "orpo": ("model_name_or_path",),
    "ppo": ("model_name_or_path", "reward_model", "critic_model"),
    "pretrain_clm": ("model_name_or_path", "tokenizer_name_or_path"),
    "pretrain_mlm": ("model_name_or_path", "tokenizer_name_or_path"),
    "reward": ("model_name_or_path", "tokenizer_name_or_path", "chat_template_path"),
    "rloo": ("model_name_or_path", "reward_model"),
    "scaling_ladder": ("tokenizer_name_or_path", "architectures"),
    "seq2seq": ("model_name_or_path", "tokenizer_name_or_path", "generation_config"),
    "sft": ("model_name_or_path", "chat_template_path"),
    "tag": ("model_name_or_path",),
}
FILES = {"architectures": "llama.json", "chat_template_path": "chat.jinja"}


def model_folder(folder: Path, *, base: Path | None = None) -> Path:
    """Write what a model's folder holds; of an adapter when it has a base."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "config.json").write_text('{"num_hidden_layers": 2}')
    (folder / "model.safetensors").write_bytes(b"0" * 100)
    if base is not None:
        config = {"base_model_name_or_path": str(base)}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


class Start:
    """Start a recipe in one folder, as often as a test wants, up to where its model is loaded."""

    def __init__(self, recipe: str, folder: Path, flags: list[str]) -> None:
        self.folder = folder
        source = ROOT / "recipes" / f"{recipe}.py"
        self.file = folder.parent / source.name
        shutil.copyfile(source, self.file)
        self.settings = parse(
            *settings_classes(load_recipe(source)), argv=[*flags, "--output_dir", str(folder)]
        )

    def __call__(self, *allowed: str, finish: bool = False) -> Run:
        run = Run.start(str(self.file), self.folder, *self.settings, allow_changed=allowed)
        if finish:
            with run:
                run.finish({})
        else:
            with pytest.raises(Preempted), run:
                (self.folder / "checkpoint-1").mkdir(exist_ok=True)
                raise KeyboardInterrupt
        return run


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], tuple[Start, dict[str, Path]]]:
    """A function that makes the inputs of a recipe, an adapter as its model, and starts it."""

    def make(name: str) -> tuple[Start, dict[str, Path]]:
        places = {}
        base = model_folder(tmp_path / "base")
        for setting in TRAINING[name]:
            if setting in FILES:
                places[setting] = tmp_path / FILES[setting]
                places[setting].write_text("{}")
            else:
                places[setting] = model_folder(tmp_path / setting, base=base)
        flags = [f"--{setting}={place}" for setting, place in places.items()]
        return Start(name, tmp_path / "out", flags), places

    return make


def refused(start: Start, path: Path, allow: str) -> None:
    """Check that a changed file ends a start in one line, and that its name lets it pass."""
    name = path.name if allow == "recipe" else str(path)
    with pytest.raises(CheckpointError) as refusal:
        start()
    message = str(refusal.value)
    assert "\n" not in message and name in message and "->" in message, message
    assert f"--allow_changed {allow}" in message, message


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("finished", [False, True], ids=["resumed", "finished"])
def test_what_a_recipe_reads_is_compared(recipe, name: str, finished: bool) -> None:
    start, places = recipe(name)
    start(finish=finished)
    before = (start.folder / "run.json").read_bytes()

    read = {start.file: "recipe"}
    for place in places.values():
        if place.is_file():
            read[place] = str(place)
        else:
            inside = ["tokenizer.json", "chat_template.jinja", "config.json", "model.safetensors"]
            read |= {place / file: str(place / file) for file in inside}
    # the base of an adapter is read as well
    base = start.folder.parent / "base"
    if any(place.is_dir() for place in places.values()):
        read |= {base / file: str(base / file) for file in ("model.safetensors", "config.json")}

    for path, allow in read.items():
        content = path.read_bytes()
        # of the same size, so that only its content says it
        path.write_bytes(content[:-1] + b"!")
        refused(start, path, allow)
        path.write_bytes(content + b" ")
        refused(start, path, allow)
        path.write_bytes(content)
    assert (start.folder / "run.json").read_bytes() == before, "a refusal changes nothing"

    if finished:
        with pytest.raises(AlreadyFinished):
            start()
    else:
        start()


def test_the_table_names_every_recipe_that_trains_and_every_setting_that_names_a_place() -> None:
    for path in sorted((ROOT / "recipes").glob("*.py")):
        classes = settings_classes(load_recipe(path))
        names = {field.name for one in classes for field in dataclasses.fields(one)}
        assert (path.stem in TRAINING) == ("resume_from_checkpoint" in names), path.stem
        if path.stem in TRAINING:
            named = {name for name in names if name.endswith(("_path", "_model"))}
            # switches, the name of a metric, what an endpoint calls its model
            named -= {"save_only_model", "sync_ref_model", "metric_for_best_model"}
            named -= {"probe_judge_model"}
            assert named <= set(inputs.INPUT_SETTINGS), path.stem
            assert set(TRAINING[path.stem]) <= names


def test_what_is_allowed_by_name_passes_and_is_recorded(recipe) -> None:
    start, places = recipe("sft")
    start()
    file = places["model_name_or_path"] / "chat_template.jinja"
    file.write_text("{{ other }}")
    with pytest.raises(ConfigError, match=r"--allow_changed 'chat_template\.jina' is no setting"):
        start("chat_template.jina")
    run = start(str(file))
    assert run._changed == {str(file): ("14 bytes", "11 bytes")}
    start()
    # by the setting, all that it names
    file.write_text("{{ a third }}")
    assert list(start("model_name_or_path")._changed) == [str(file)]


def test_a_file_that_is_new_or_gone_is_a_change(recipe) -> None:
    start, places = recipe("dpo")
    folder = places["model_name_or_path"]
    start()
    (folder / "special_tokens_map.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"special_tokens_map\.json .*not there -> 2 bytes"):
        start()
    (folder / "special_tokens_map.json").unlink()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja .*14 bytes -> not there"):
        start()
    # what a run of another tool leaves there is not read
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "trainer_state.json").write_text("{}")
    start()


def test_a_finished_run_may_outlive_what_it_read(recipe) -> None:
    start, places = recipe("dpo")
    start(finish=True)
    shutil.rmtree(places["model_name_or_path"])
    shutil.rmtree(start.folder.parent / "base")
    with pytest.raises(AlreadyFinished):
        start()


def test_a_record_of_an_earlier_version_is_compared_in_what_it_has(recipe) -> None:
    start, places = recipe("dpo")
    start()
    path = start.folder / "run.json"
    values = json.loads(path.read_text())
    weights = places["model_name_or_path"] / "model.safetensors"
    values["models"] = [disk.describe_file(weights)]
    path.write_text(json.dumps(values))
    start()
    path.write_text(json.dumps(values))
    weights.write_bytes(b"1" * 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        start()


def test_what_cannot_be_read_is_not_taken_for_changed(recipe) -> None:
    start, _ = recipe("dpo")
    start()
    before = (start.folder / "run.json").read_bytes()
    with Faults() as faults:
        faults.plant(5, "model.safetensors", at="read")
        with pytest.raises(CheckpointError, match=r"model\.safetensors could not be read"):
            start()
    assert (start.folder / "run.json").read_bytes() == before


def test_large_weights_are_read_again_only_when_the_system_says_that_they_were_written(
    recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_LARGE_BYTES", 100)
    monkeypatch.setattr(inputs, "_SETTLED_NS", -1)
    read: list[str] = []

    def hash_file(path: Path) -> str:
        read.append(path.name)
        return disk.hash_file(path)

    monkeypatch.setattr(inputs, "hash_file", hash_file)
    start, places = recipe("dpo")
    weights = places["model_name_or_path"] / "model.safetensors"
    start()
    assert read.count("model.safetensors") == 2, "the adapter's and its base's"
    read.clear()
    start()
    assert "model.safetensors" not in read and "config.json" in read

    # another content of the same size, with the old time put back
    status = weights.stat()
    weights.write_bytes(b"1" * 100)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CheckpointError, match=r"model\.safetensors .*blake2b"):
        start()


def test_weights_that_were_written_a_moment_ago_are_read_again(
    recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_LARGE_BYTES", 100)
    start, _ = recipe("dpo")
    start()
    assert not any("stamp" in entry for entry in read_run(start.folder).models)


def test_a_branch_of_the_hub_that_moved_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    branch = tmp_path / "hub" / "models--owner--name" / "refs" / "main"
    branch.parent.mkdir(parents=True)
    start = Start("tag", tmp_path / "out", ["--model_name_or_path=owner/name"])
    start().expect_manifests()
    first, second = "a" * 40, "b" * 40
    # it is downloaded after the run began, and known when training begins
    branch.write_text(first)
    start().expect_manifests()
    assert [entry["commit"] for entry in read_run(start.folder).models[1:]] == [first]
    branch.write_text(second)
    with pytest.raises(CheckpointError, match=f"owner/name .*{first[:12]} -> commit {second[:12]}"):
        start()
    # the same, when only the loading itself finds the new one
    branch.write_text(first)
    run = start()
    branch.write_text(second)
    with pytest.raises(CheckpointError, match=f"--model_revision {first}"):
        run.expect_manifests()


def test_the_commit_is_read_where_upstream_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import try_to_load_from_cache

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder, commit = tmp_path / "models--owner--name", "c" * 40
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    found = try_to_load_from_cache("owner/name", "config.json", cache_dir=tmp_path)
    assert found == str(snapshot / "config.json")
    [entry] = inputs.describe_inputs({"A": {"model_name_or_path": "owner/name"}}, None)
    assert entry["commit"] == commit


def test_every_file_that_upstream_opens_is_read(tmp_path: Path) -> None:
    names = {
        value
        for module in (utils, tokenization_utils_base)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and value.endswith((".json", ".jinja"))
    }
    # of pictures and sounds, and a card that nothing reads any more
    names.discard("modelcard.json")
    names -= {name for name in names if name.startswith(("audio", "preprocessor", "video"))}
    names |= {ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_BIN, CLASSIFIER_FILE}
    names |= {utils.SAFE_WEIGHTS_NAME, utils.WEIGHTS_NAME, "spiece.model", "source.spm"}
    names |= {"vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "bpe.codes"}
    assert {"config.json", "chat_template.jinja", "tokenizer_config.json"} <= names
    for name in names:
        (tmp_path / name).write_text("{}")
    listed = {Path(entry["path"]).name for entry in inputs.describe_folder(tmp_path)}
    assert names - listed == set()


def test_data_that_is_left_out_is_a_change_and_a_killed_start_forgets_none(recipe) -> None:
    start, _ = recipe("dpo")
    shards = [start.folder.parent / name for name in ("a.jsonl", "b.jsonl")]
    sources: list[dict[str, Any]] = []
    for shard in shards:
        shard.write_text("{}\n")
        sources.append({"path": str(shard), "files": [disk.describe_file(shard)]})
    start().record_inputs(train=sources)
    # a start that ends before it has read its data
    with pytest.raises(KeyError), Run.start(str(start.file), start.folder, *start.settings):
        raise KeyError
    for allowed, expected in [((), None), ((str(shards[1]),), {str(shards[1])})]:
        again = Run.start(str(start.file), start.folder, *start.settings, allow_changed=allowed)
        again.resumed_from = start.folder / "checkpoint-1"
        if expected is None:
            with pytest.raises(CheckpointError, match=r"b\.jsonl is not read any more; .*b\.jsonl"):
                again.record_inputs(train=sources[:1])
        else:
            again.record_inputs(train=sources[:1])
            assert set(again._changed) == expected


def test_a_model_that_the_code_alone_names_is_compared(recipe, tmp_path: Path) -> None:
    start, _ = recipe("rloo")
    judge = model_folder(tmp_path / "judge")
    run = start()
    run.record_inputs(judge)
    (judge / "model.safetensors").write_bytes(b"1" * 100)
    with pytest.raises(CheckpointError, match=r"judge/model\.safetensors"):
        start()
