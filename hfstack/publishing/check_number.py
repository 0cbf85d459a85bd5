"""Measure one number of a published model that anyone can measure again.

It is measured on a text that is part of hfstack, on a CPU in fp32, before a model is pushed and by
`verify` after it was fetched: equal hashes say that the files are the same, an equal number says
that they still load and mean the same.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import hfstack.models.gru  # noqa: F401 - registers its architectures
from hfstack.errors import CheckpointError
from hfstack.models.context import context_length
from hfstack.models.sequence_head import register_classifier
from hfstack.publishing.files import SENTENCE_TRANSFORMERS, TOKENIZER, PublishedKind
from hfstack.tasks.causal_lm.document_scores import score_documents

NUMBER_TOLERANCE = 2e-3  # relative: other processors add in another order
# Never change this text: published numbers were measured on it.
_CHECK_TEXT = (
    "On the edge of the village stood an old mill, and in the mill lived a miller who could not "
    "sleep. Every night he heard the wheel turn although the river was low. So he took a lamp, "
    "went down the narrow stairs and found a small otter, who was pushing the wheel with both "
    "paws. 'Why do you work at night?' asked the miller. 'Because at night nobody tells me that "
    "otters cannot grind flour,' said the otter. From that day on the bread was on the table "
    "before the sun came up, and the miller slept well."
)
_LONGEST_TOKENS = 256


def measure_check_number(files: Mapping[str, Path], kind: PublishedKind) -> tuple[str, float]:
    """Return the name and the value of the check number of what is published.

    Args:
        files: by path in the repository; those of a model lie in one folder.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    if kind.name == "dataset":
        rows = (path for name, path in files.items() if name.endswith(".jsonl"))
        return "check_rows", float(sum(_count_json_rows(path) for path in rows))

    # a tokenizer: how many tokens the text has
    folder = next(
        path.parent for name, path in files.items() if name in (TOKENIZER, "tokenizer_config.json")
    )
    tokenizer = _loaded(
        folder, lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    )
    if kind.name == "tokenizer":
        return "check_tokens", float(len(tokenizer(_CHECK_TEXT)["input_ids"]))

    if kind.name in SENTENCE_TRANSFORMERS:
        return _measure_sentences(folder, kind)

    # a causal language model: bits per byte of the text
    model = load_published(folder, kind)
    length = min(context_length(model.config) or _LONGEST_TOKENS, _LONGEST_TOKENS)
    if kind.name == "causal":
        scores = score_documents(
            model,
            tokenizer,
            [_CHECK_TEXT],
            max_length=length,
            stride=max(1, length // 2),
            batch_size=1,
        )
        # takes half a second to import, which every Trainer would pay
        from hfstack.tasks.causal_lm.metrics import compute_metrics

        return "check_bits_per_byte", float(compute_metrics(scores)["bits_per_byte"])

    # any other model: the mean size of its logits
    inputs = tokenizer(
        _CHECK_TEXT, return_tensors="pt", truncation=True, max_length=length
    )  # (1, T)
    read = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    if kind.auto_class == AutoModelForSeq2SeqLM.__name__:
        # BART's family would shift the text for its decoder by itself, as every family does labels
        read["labels"] = inputs["input_ids"]  # (1, T)

    with torch.no_grad():
        outputs: Any = model(**read)
    logits = outputs.start_logits if "start_logits" in outputs else outputs.logits
    return "check_mean_logit", float(logits.float().abs().mean())


def _measure_sentences(folder: Path, kind: PublishedKind) -> tuple[str, float]:
    """Return the mean size of the text's vector, or a score of the text."""
    # no other kind needs TRL, which takes seconds to import
    from trl import ModelConfig

    from hfstack.tasks.retrieval.model import load_embedder, load_reranker

    args = ModelConfig(model_name_or_path=str(folder))
    if kind.name == "embedding":
        model = load_embedder(args)
        vector = model.encode([_CHECK_TEXT], show_progress_bar=False)
        return "check_mean_embedding", float(abs(vector).mean())

    pair = (_CHECK_TEXT.partition(".")[0], _CHECK_TEXT)
    return "check_score", float(load_reranker(args).predict([pair], show_progress_bar=False)[0])


def load_published(folder: Path, kind: PublishedKind, *, dtype: str = "float32") -> Any:
    """Return the model of a folder on the CPU, an adapter on its base.

    Args:
        dtype: number format of the weights; `auto` is that of the files.

    Raises:
        CheckpointError: it, or its base, cannot be loaded.
    """
    how: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    loader = getattr(transformers, kind.auto_class)
    if kind.auto_class == AutoModelForSequenceClassification.__name__:
        where = kind.base if kind.adapter else folder
        register_classifier(
            _loaded(where, lambda: AutoConfig.from_pretrained(where, trust_remote_code=False))
        )
    if not kind.adapter:
        return _loaded(
            folder, lambda: loader.from_pretrained(folder, **how, trust_remote_code=False).eval()
        )

    if kind.labels:
        how["num_labels"] = kind.labels
    base = _loaded(
        kind.base, lambda: loader.from_pretrained(kind.base, **how, trust_remote_code=False)
    )
    return _loaded(folder, lambda: PeftModel.from_pretrained(base, str(folder)).eval())


def _loaded(place: Path | str, function: Callable[[], Any]) -> Any:
    """Call a loading function.

    Raises:
        CheckpointError: it fails; in one line, with the place.
    """
    try:
        return function()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{place} cannot be loaded: {reason}") from error


def agrees(measured: float, recorded: float) -> bool:
    """Return whether a number measured again is the one that was recorded."""
    return abs(measured - recorded) <= NUMBER_TOLERANCE * max(abs(recorded), 1e-3)


def _count_json_rows(path: Path) -> int:
    with path.open(encoding="utf-8") as file:
        return sum(1 for line in file if json.loads(line) is not None)
