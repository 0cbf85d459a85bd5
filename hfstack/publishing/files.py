"""Choose the files of a run that are published, and check that they are whole.

A run's directory holds more than what others need: checkpoints, caches, pickles. Only files known
by name are taken.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers

from hfstack.disk import is_inside, target_of
from hfstack.errors import CheckpointError
from hfstack.models.contents import ADAPTER_FILE as ADAPTER_CONFIG
from hfstack.models.contents import CLASSIFIER_FILE, MODULES_FILE, ModelKind, identify_model
from hfstack.runs.model_folder import read_object
from hfstack.runs.record import MODULE_FOLDERS

CONFIG, WEIGHTS_INDEX = "config.json", "model.safetensors.index.json"
GENERATION = "generation_config.json"
TOKENIZER = "tokenizer.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_VOCABULARIES = frozenset({TOKENIZER, "vocab.txt", "vocab.json", "merges.txt"})
FACTS = (CLASSIFIER_FILE, "task.json")
"""What a finished model needs beside its weights to be used again, where its recipe writes it."""
_DATASET_SPLITS = ("train", "eval")
_CORPUS_PARTS = ("raw", "sentiment", "instructions", "chat")  # of demo_corpus
_WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy")
_MODULE_SUFFIXES = (".json", ".safetensors")
_RECURRENT = ("hfstack_gru", "hfstack_lstm")


@dataclass(frozen=True)
class FileToPublish:
    """One file to publish: its path in the repository, and where it lies here."""

    path: str
    source: Path
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PublishedKind:
    """What is published.

    Args:
        name: `causal`, `masked`, `seq2seq`, `reward`, `classifier`, `tagger`, `question answering`,
            `embedding`, `reranker`, `model`, `tokenizer` or `dataset`.
        repo_type: `model` or `dataset`.
        auto_class: the class of transformers that loads it, or of sentence-transformers; "" for
            tokenizers and datasets.
        pipeline_tag: the Hub's name of the task, or None.
        adapter: these are LoRA weights on a base model.
        base: where an adapter finds its base, as its adapter_config.json says.
        labels: of an adapter of a classifier or reward model, the outputs of its head; 0 otherwise.
        problem_type: of a classifier, as transformers calls it; "" where no file says.
        temperature: of a classifier, what `predict` divides its logits by.
        names: of a classifier's labels, by id.
        recurrent: `hfstack.models.gru` has to be imported before it can be loaded.
        own_head: a classifier of a family that transformers has none for, so that its transformer
            is loaded by itself.
        own_sampling: what its generation_config.json chooses beside token ids: `generate` would add
            it to what a call asks for.
    """

    name: str
    repo_type: str = "model"
    auto_class: str = ""
    pipeline_tag: str | None = None
    adapter: bool = False
    base: str = ""
    labels: int = 0
    problem_type: str = ""
    temperature: float = 1.0
    names: tuple[str, ...] = ()
    recurrent: bool = False
    own_head: bool = False
    own_sampling: tuple[str, ...] = ()


_REWARDING = PublishedKind(
    "reward",
    auto_class="AutoModelForSequenceClassification",
    pipeline_tag="text-classification",
)
_BY_KIND: dict[ModelKind, PublishedKind] = {
    "causal language model": PublishedKind(
        "causal", auto_class="AutoModelForCausalLM", pipeline_tag="text-generation"
    ),
    "masked language model": PublishedKind(
        "masked", auto_class="AutoModelForMaskedLM", pipeline_tag="fill-mask"
    ),
    "sequence classifier": replace(_REWARDING, name="classifier"),
    "reward model": _REWARDING,
    # one answer for each token, span or text
    "token classifier": PublishedKind(
        "tagger", auto_class="AutoModelForTokenClassification", pipeline_tag="token-classification"
    ),
    "question answering model": PublishedKind(
        "question answering",
        auto_class="AutoModelForQuestionAnswering",
        pipeline_tag="question-answering",
    ),
    "encoder-decoder": PublishedKind("seq2seq", auto_class="AutoModelForSeq2SeqLM"),
    # loaded by sentence-transformers
    "embedding model": PublishedKind(
        "embedding", auto_class="SentenceTransformer", pipeline_tag="sentence-similarity"
    ),
    "reranker": PublishedKind("reranker", auto_class="CrossEncoder", pipeline_tag="text-ranking"),
}
SENTENCE_TRANSFORMERS = frozenset({"embedding", "reranker"})
"""Names of the kinds that sentence-transformers loads."""
_OTHER_MODEL = PublishedKind("model", auto_class="AutoModel")


def detect_kind(folder: Path, artifacts: dict[str, str], *, rewards: bool = False) -> PublishedKind:
    """Return what a run has left in its directory.

    Args:
        artifacts: name to path, as in run.json: a run without a model that lists `train` or `eval`
            made a dataset.
        rewards: the run trained a reward model, so that an adapter with a head is one.

    Raises:
        CheckpointError: there is nothing that can be published.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return _kind_of_adapter(folder, rewards=rewards)
    if (folder / CONFIG).is_file():
        return _kind_of_model(folder)
    if (folder / TOKENIZER).is_file():
        return PublishedKind("tokenizer")
    if data_files(folder, artifacts):
        return PublishedKind("dataset", "dataset")
    raise CheckpointError(f"{folder} holds no model, adapter, tokenizer or dataset to publish")


def _kind_of_adapter(folder: Path, *, rewards: bool) -> PublishedKind:
    """Return what a LoRA adapter makes of its base, by the task that PEFT recorded."""
    found = identify_model(str(folder))
    known = _BY_KIND.get(found.kind, _OTHER_MODEL)
    name = "reward" if known.name == "classifier" and rewards else known.name
    labels = 1 if name == "reward" else _label_count(folder)
    base = Path(found.base) / CONFIG  # not read where it is on the Hub
    family = read_object(base).get("model_type", "") if base.is_file() else ""
    return replace(
        known,
        name=name,
        adapter=True,
        base=found.base,
        labels=labels,
        own_head=_has_own_head(known, family),
        **_classifier_facts(folder),
    )


def _kind_of_model(folder: Path) -> PublishedKind:
    """Return what a whole model is, by the architecture in its config.json."""
    config = read_object(folder / CONFIG)
    known = _BY_KIND.get(identify_model(str(folder)).kind, _OTHER_MODEL)
    family = config.get("model_type", "")
    return replace(
        known,
        recurrent=family in _RECURRENT,
        own_head=_has_own_head(known, family, *config.get("architectures", ())[:1]),
        own_sampling=_own_sampling(folder / GENERATION),
        **_classifier_facts(folder),
    )


def _has_own_head(kind: PublishedKind, family: str, architecture: str = "") -> bool:
    """Return whether a model classifies by a head that transformers does not have."""
    classifies = kind.auto_class == _REWARDING.auto_class
    if not classifies or family == "":
        return False
    if architecture in dir(transformers):
        return False

    # Late, because it imports torch.
    from hfstack.models.sequence_head import is_own_classifier

    return is_own_classifier(family)


def _own_sampling(file: Path) -> tuple[str, ...]:
    """Return the names that a generation_config.json sets beside token ids."""
    values = read_object(file) if file.is_file() else {}
    fixed = ("transformers_version", "use_cache", "max_new_tokens", "max_length")
    return tuple(
        name
        for name, value in sorted(values.items())
        if value is not None and name not in fixed and not name.endswith("_id") and name[0] != "_"
    )


def _classifier_facts(folder: Path) -> dict[str, Any]:
    """Return what a classifier.json says of outputs; nothing without one."""
    if not (folder / CLASSIFIER_FILE).is_file():
        return {}
    info = read_object(folder / CLASSIFIER_FILE)
    return {
        "problem_type": info.get("problem_type", ""),
        "temperature": float(info.get("temperature", 1.0)),
        "names": tuple(info.get("names") or ()),
    }


def data_files(folder: Path, artifacts: dict[str, str]) -> dict[str, Path]:
    """Return the rows that a run has made, by split.

    They are what it lists as .jsonl, otherwise files with the names of splits, otherwise those of
    the parts of a demo corpus. Empty files are left out: they have no columns to load.
    """
    listed = {name: folder / path for name, path in artifacts.items() if path.endswith(".jsonl")}
    candidates = [listed]
    if not {"train", "eval"} & listed.keys():
        names = (_DATASET_SPLITS, _CORPUS_PARTS)
        candidates = [{name: folder / f"{name}.jsonl" for name in group} for group in names]

    for wanted in candidates:
        found = {
            name: path
            for name, path in wanted.items()
            if path.is_file() and path.parent == folder and path.stat().st_size
        }
        if found:
            return found
    return {}


def published_files(
    folder: Path, kind: PublishedKind, artifacts: dict[str, str]
) -> dict[str, Path]:
    """Return the files that are published, by their path in the repository.

    Raises:
        CheckpointError: one of them is missing, or weights are there only as a pickle.
    """
    if kind.name == "dataset":
        rows = data_files(folder, artifacts)
        for path in rows.values():
            refuse_outside(path, folder)
        return {path.name: path for path in rows.values()}

    names = list(tokenizer_files(folder))
    if kind.name != "tokenizer":
        whole = [CONFIG, GENERATION, WEIGHTS_INDEX]
        names += [*FACTS, *([ADAPTER_CONFIG] if kind.adapter else whole)]
        names += [path.name for path in folder.glob(_WEIGHTS[1 if kind.adapter else 0])]
        if kind.name in SENTENCE_TRANSFORMERS:
            names += _module_files(folder)
        _check_complete(folder, kind, set(names))

    found = {name: folder / name for name in sorted(set(names)) if (folder / name).is_file()}
    for path in found.values():
        refuse_outside(path, folder)
    if not _VOCABULARIES & found.keys() and not any(name.endswith(".model") for name in found):
        raise CheckpointError(
            f"{folder} has no tokenizer, without which the model is of no use: "
            "save it there as well"
        )
    return found


def _module_files(folder: Path) -> list[str]:
    """Return what a model of sentence-transformers has beside its transformer."""
    own = [MODULES_FILE, "config_sentence_transformers.json", "sentence_bert_config.json"]
    inside = [path for path in folder.glob(MODULE_FOLDERS) if path.suffix in _MODULE_SUFFIXES]
    return own + [path.relative_to(folder).as_posix() for path in inside]


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """Return the files of a folder's tokenizer by name; SentencePiece's end in .model."""
    names = [*_TOKENIZER_FILES, *(path.name for path in folder.glob("*.model"))]
    found = {name: folder / name for name in names if (folder / name).is_file()}
    for path in found.values():
        refuse_outside(path, folder)
    return found


def make_item(path_in_repo: str, source: Path) -> FileToPublish:
    """Return a file with its size and sha256.

    Args:
        path_in_repo: where it lies below the folder that is published.
        source: the same path below that folder on this machine.

    Raises:
        CheckpointError: it is a link that leads out of that folder.
    """
    refuse_outside(source, source.parents[len(Path(path_in_repo).parts) - 1])
    with source.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileToPublish(path_in_repo, source, source.stat().st_size, digest)


def refuse_outside(path: Path, folder: Path) -> None:
    """Raise CheckpointError where a file of a folder leads out of it, as a link may."""
    if not is_inside(path, folder):
        raise CheckpointError(
            f"{path} is a link to {target_of(path)}, outside of {folder}, and would publish that: "
            "replace it by a copy if it belongs there"
        )


def refuse_pickles(paths: Iterable[str], where: str) -> None:
    """Refuse files whose loading can run code.

    Raises CheckpointError.
    """
    for path in paths:
        if path.lower().endswith(PICKLES):
            raise CheckpointError(
                f"{where} has {path}, a format that can run code when it is loaded: "
                "keep weights as safetensors only"
            )


def _label_count(folder: Path) -> int:
    """Return how many labels an adapter's head has; 0 where no file beside it says."""
    if (folder / CLASSIFIER_FILE).is_file():
        return len(read_object(folder / CLASSIFIER_FILE).get("names") or [0])
    if (folder / FACTS[1]).is_file():
        return len(read_object(folder / FACTS[1]).get("tags") or [])
    return 0


def _check_complete(folder: Path, kind: PublishedKind, names: set[str]) -> None:
    """Refuse a model without its weights, or with shards missing."""
    if not any(name.endswith(".safetensors") for name in names):
        refuse_pickles((path.name for path in folder.iterdir()), str(folder))
        raise CheckpointError(f"{folder} has no safetensors weights to publish")
    if not kind.adapter and (folder / WEIGHTS_INDEX).is_file():
        shards = set(read_object(folder / WEIGHTS_INDEX).get("weight_map", {}).values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise CheckpointError(
                f"{folder} lacks {missing[0]}, which {WEIGHTS_INDEX} lists: "
                "the weights are incomplete"
            )
