"""Save a trained model for sentence-transformers, and compare it when loaded.

An adapter is merged into its base at the end, and kept by itself in `adapter/`: so the folder loads
without PEFT and without the base.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from peft import PeftModel
from trl import ModelConfig

from hfstack.errors import ConfigError
from hfstack.models.loading import merge_into_base
from hfstack.models.saved import SAVED_HALF_TOLERANCE, SAVED_TOLERANCE, check_difference
from hfstack.runs.environment import is_sharded
from hfstack.runs.processes import decide_on_first
from hfstack.runs.resume import ADAPTER_FOLDER
from hfstack.runs.run import Run
from hfstack.tasks.retrieval.model import load_retriever
from hfstack.tasks.retrieval.rows import TextPair
from hfstack.training.saving import record_check, save_resumable

_PROBES = 8


def refuse_shards(args: Any) -> None:
    """Refuse to spread weights over processes, which are not saved as one here.

    Raises:
        ConfigError: FSDP or DeepSpeed shards them.
    """
    if is_sharded(args):
        raise ConfigError(
            "embed trains whole weights on each device: start it without FSDP or ZeRO"
        )


def save_embedder(run: Run, trainer: Any, pairs: Sequence[TextPair]) -> None:
    """Save the trained model, load it as its users do, and compare what it gives.

    Called right after `train`, before anything is scored.

    Args:
        run: of the recipe.
        trainer: one that has trained.
        pairs: some rows, whose texts both models read.

    Raises:
        CheckpointError: what was saved gives other numbers than what was trained.
    """
    save_resumable(trainer)
    # in the number format of its weights from here on, as its users compute, not by autocast
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    probes = [(pair.query, pair.passage) for pair in pairs[:_PROBES]]
    trained = read_probes(model, probes)

    inner = model.transformers_model
    if isinstance(inner, PeftModel):
        run.add_artifact("adapter", ADAPTER_FOLDER)
        model[0].model = merge_into_base(inner)
        if trainer.args.should_save:
            model.save_pretrained(str(run.output_dir), create_model_card=False)

    found = decide_on_first(
        trainer.args.process_index, lambda: _compare_saved(trained, model, run.output_dir, probes)
    )
    record_check(run, found)


def read_probes(model: Any, probes: Sequence[tuple[str, str]]) -> numpy.ndarray:
    """Return the embeddings of all texts, or the scores of all pairs, in fp32.

    Args:
        model: a SentenceTransformer or a CrossEncoder; its mode is kept.
        probes: pairs of texts.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        if hasattr(model, "encode"):
            texts = [text for pair in probes for text in pair]
            found = model.encode(texts, show_progress_bar=False)  # (2 x probes, D)
        else:
            # logits, which a sigmoid would hide near 0 and 1
            identity = torch.nn.Identity()
            found = model.predict(list(probes), activation_fn=identity, show_progress_bar=False)
    model.train(was_training)
    return numpy.asarray(found, dtype=numpy.float32)


def _compare_saved(
    trained: numpy.ndarray, model: Any, folder: Path, probes: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Return what run.json says of the saved model.

    Raises:
        CheckpointError: it gives other numbers.
    """
    began = time.perf_counter()
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    saved = load_retriever(ModelConfig(model_name_or_path=str(folder), dtype=dtype))
    found = read_probes(saved.to(model.device), probes)

    same_shape = found.shape == trained.shape
    difference = float(numpy.abs(found - trained).max()) if same_shape else float("inf")
    # adapters are rounded when they are merged, and weights of 16 bits in any case
    share = SAVED_TOLERANCE if dtype == "float32" else SAVED_HALF_TOLERANCE
    allowed = share * max(1.0, float(numpy.abs(trained).max()))
    return check_difference(
        folder, difference, allowed, began=began, numbers="embeddings or scores"
    )
