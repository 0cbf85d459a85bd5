"""Build the trainer of sentence-transformers, its loss and its settings.

In-batch negatives (Henderson et al. 2017, section 4.4): each query's own passage is to score above
the passages of all other queries of the batch. A text that is twice in a batch would be a negative
of itself, so that equal texts never meet in one (`no_duplicates`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback, TrainingArguments

from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.tasks.retrieval.libraries import import_library
from hfstack.tasks.retrieval.model import RetrieverKind
from hfstack.training.preflight import Problems

logger = get_logger(__name__)

LossName = Literal["in_batch_negatives", "score"]

# losses that sentence-transformers has for both kinds of model, under the same names
_LOSS_MODULES: dict[RetrieverKind, str] = {
    "bi_encoder": "sentence_transformers.sentence_transformer.losses",
    "cross_encoder": "sentence_transformers.cross_encoder.losses",
}
_TRAINER_CLASSES: dict[RetrieverKind, str] = {
    "bi_encoder": "SentenceTransformerTrainer",
    "cross_encoder": "CrossEncoderTrainer",
}


@dataclass
class LossArgs:
    """The negatives of a query, and which embeddings are trained."""

    mini_batch_size: int | None = None
    """Rows in memory at once, for batches that are larger: their gradients are cached."""
    hard_negatives: int = 0
    """Hard negatives to mine for each row: the passages that the model itself ranks highest."""
    negative_margin: float = 0.05
    """A mined passage may be right too where it scores above this share below the right one: it is
    left alone.
    """
    matryoshka_dims: list[int] = field(default_factory=list)
    """Shorter embeddings to train with the whole one, such as 256 128 64: the first numbers of it.
    """


def make_loss(
    model: Any,
    kind: RetrieverKind,
    name: LossName,
    *,
    mini_batch_size: int | None = None,
    matryoshka_dims: Sequence[int] = (),
) -> Any:
    """Return the loss of sentence-transformers for pairs, triplets or scored pairs.

    Args:
        name: "in_batch_negatives", or of scored pairs "score": CoSENT of a bi-encoder, which
            learns the order of the scores, and cross-entropy of a cross-encoder.
        mini_batch_size: rows that are in memory at once, by gradient caching (Gao et al. 2021);
            None for all of a batch.
        matryoshka_dims: first dimensions of an embedding that are trained to be embeddings
            themselves (Kusupati et al. 2022).

    Raises:
        ConfigError: an option does not fit the kind of the model or the rows.
    """
    losses: Any = import_library(_LOSS_MODULES[kind])
    if name == "score":
        if mini_batch_size is not None:
            raise ConfigError("--mini_batch_size is for in-batch negatives; these rows have scores")
        loss = losses.CoSENTLoss if kind == "bi_encoder" else losses.BinaryCrossEntropyLoss
        made = loss(model)
    elif mini_batch_size is None:
        made = losses.MultipleNegativesRankingLoss(model)
    else:
        made = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=mini_batch_size)

    if not matryoshka_dims:
        return made
    if kind == "cross_encoder":
        raise ConfigError("--matryoshka_dims are of embeddings, and a cross_encoder makes none")
    size = model.get_embedding_dimension()
    if max(matryoshka_dims) > size or min(matryoshka_dims) < 1:
        raise ConfigError(
            f"--matryoshka_dims {' '.join(map(str, matryoshka_dims))}: the model's embeddings have "
            f"{size} dimensions: choose from 1 to {size}"
        )
    dims = sorted({*matryoshka_dims, size}, reverse=True)
    return losses.MatryoshkaLoss(model, made, dims)


def make_trainer(
    model: Any,
    kind: RetrieverKind,
    args: TrainingArguments,
    *,
    rows: Mapping[str, Dataset],
    mini_batch_size: int | None,
    matryoshka_dims: Sequence[int],
    measure: Callable[[Any], dict[str, float]] | None,
    callbacks: list[TrainerCallback],
) -> Any:
    """Return the trainer, a Trainer of Hugging Face.

    Args:
        rows: "train" and maybe "eval", as `as_columns` returns them.
        mini_batch_size, matryoshka_dims: of `make_loss`.
        measure: scores the model on held-out rows, at each evaluation.

    Raises:
        ConfigError: an option does not fit the kind of the model or the rows.
    """
    library: Any = import_library("sentence_transformers")
    train = rows["train"]
    loss = make_loss(
        model,
        kind,
        "score" if "score" in train.column_names else "in_batch_negatives",
        mini_batch_size=mini_batch_size,
        matryoshka_dims=matryoshka_dims,
    )
    return _trainer_class(getattr(library, _TRAINER_CLASSES[kind]))(
        model=model,
        args=_as_settings(args, kind, model, columns=train.column_names),
        train_dataset=train,
        eval_dataset=rows.get("eval"),
        loss=loss,
        evaluator=None if measure is None else _as_evaluator(measure),
        processing_class=model.tokenizer,
        callbacks=callbacks,
    )


def mine_negatives(
    model: Any, rows: Dataset, count: int, *, margin: float, batch_size: int
) -> Dataset:
    """Add hard negatives to rows: passages that the model wrongly finds alike.

    Args:
        rows: query and passage.
        count: negatives of each row.
        margin: a passage that scores above this share below the right one may be right too, and is
            no negative (Moreira et al. 2024).

    Raises:
        DataError: no row has as many.
    """
    util: Any = import_library("sentence_transformers.util")
    mined = util.mine_hard_negatives(
        rows,
        model,
        anchor_column_name="query",
        positive_column_name="passage",
        num_negatives=count,
        relative_margin=margin,
        output_format="n-tuple",
        batch_size=batch_size,
        verbose=False,
    )
    if not len(mined):
        raise DataError(
            f"--hard_negatives {count}: no query has as many passages that are clearly no answer; "
            "lower it or --negative_margin, or give more rows"
        )
    logger.info("mined %d negatives for %d of %d rows", count, len(mined), len(rows))
    return mined


def batch_problems(trainer: Any, batches: int = 20) -> Problems:
    """Check that the first batches hold no passage twice, for in-batch negatives.

    Rows with a score have no negatives.
    """
    if "score" in trainer.train_dataset.column_names:
        return {}
    texts = [name for name in trainer.train_dataset.column_names if name != "score"]
    sampler = trainer.get_train_dataloader().batch_sampler
    problem = None
    for _, rows in zip(range(batches), sampler, strict=False):
        batch = trainer.train_dataset[list(rows)]
        passages = [text for name in texts if name != "query" for text in batch[name]]
        if len(set(passages)) < len(passages):
            problem = "a passage is twice in a batch, and would be a negative of itself"
    return {"no passage is its own negative": problem}


def _as_settings(
    args: TrainingArguments, kind: RetrieverKind, model: Any, *, columns: Sequence[str]
) -> Any:
    """Return the settings as the class of sentence-transformers, which adds its own.

    A prompt stands in front of the texts of training as it does in use.
    """
    library: Any = import_library("sentence_transformers")
    make = getattr(library, f"{_TRAINER_CLASSES[kind]}".replace("Trainer", "TrainingArguments"))
    given = {one.name: getattr(args, one.name) for one in fields(TrainingArguments) if one.init}
    if "score" not in columns:
        given["batch_sampler"] = "no_duplicates"

    if kind == "bi_encoder" and any(model.prompts.values()):
        of_document = model.prompts.get("document") or ""
        prompts = {"query": model.prompts.get("query") or ""}
        prompts |= {name: of_document for name in columns if name not in ("query", "score")}
        given["prompts"] = prompts
    return make(**given)


def _as_evaluator(measure: Callable[[Any], dict[str, float]]) -> Any:
    """Return a function of a model as an evaluator of sentence-transformers."""
    library: Any = import_library("sentence_transformers.base.evaluation")

    class Measure(library.BaseEvaluator):
        def __call__(
            self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
        ) -> dict[str, float]:
            # upstream makes a folder for tables, which are not written here
            if output_path is not None and not any(Path(output_path).iterdir()):
                Path(output_path).rmdir()
            return measure(model)

    return Measure()


def _trainer_class(base: Any) -> Any:
    """Return a trainer whose checkpoints hold weights alone, or an adapter's.

    Its training is upstream's. Upstream writes a card beside each checkpoint, for which it would
    look at the data again, and cannot load an adapter that PEFT has made.
    """

    class CheckpointedTrainer(base):
        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            pass

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            folder = Path(output_dir or self.args.output_dir)
            self.model.save_pretrained(str(folder), create_model_card=False)

        def _load_from_checkpoint(self, checkpoint_path: str) -> None:
            inner = self.model.transformers_model
            if isinstance(inner, PeftModel):
                inner.load_adapter(checkpoint_path, "default", is_trainable=True)
            else:
                super()._load_from_checkpoint(checkpoint_path)

    CheckpointedTrainer.__name__ = base.__name__
    return CheckpointedTrainer
