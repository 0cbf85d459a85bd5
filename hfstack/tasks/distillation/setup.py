"""Set up what a student is distilled from: settings, teacher, cached answers"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import ModelConfig, SFTConfig

from hfstack.errors import ConfigError
from hfstack.models.isolation import keep_documents_apart
from hfstack.models.layers import keep_layers
from hfstack.models.loading import find_architecture, load_causal_lm, load_tokenizer
from hfstack.runs.environment import is_sharded
from hfstack.tasks.distillation.cache import (
    CachedTop,
    cache_key,
    describe_teacher,
    number_scored,
    open_cache,
    write_cache,
)
from hfstack.tasks.distillation.divergence import DivergenceName, Objective, check_objective
from hfstack.tasks.distillation.student import TEACHER_PLACES, Teacher
from hfstack.tasks.distillation.teachers import (
    CachedTeacher,
    LiveTeacher,
    refuse_other_tokenizer,
)
from hfstack.tasks.sft.answers import answer_loss
from hfstack.training.token_average import EachTokenCounts
from hfstack.training.unread_options import refuse_unread

_TEACHER_LOSS = "the loss is the distance from the teacher"
UNREAD_BY_DISTILL = {
    "loss_type": _TEACHER_LOSS,
    "label_smoothing_factor": _TEACHER_LOSS,
    "router_aux_loss_coef": _TEACHER_LOSS,
    "use_liger_kernel": "both heads run a chunk of positions at a time",
    "liger_kernel_config": "both heads run a chunk of positions at a time",
    "padding_free": "rows are padded, or packed by --packing",
    "activation_offloading": "this recipe has no such switch",
}


class DistillTrainer(EachTokenCounts, Trainer):
    """Trainer of a causal student, whose evaluation is a mean over tokens."""


@dataclass
class DistillArgs:
    """The teacher, and how far the student is from it."""

    teacher_model: str = ""
    """Teacher: a run, a checkpoint, an adapter or a Hub id, with the student's tokenizer."""
    divergence: DivergenceName = "forward_kl"
    """How far the student is from the teacher: forward_kl (covers all that it does), reverse_kl
    (keeps to what it does most) or jsd (between the two).
    """
    beta: float = 0.5
    """The teacher's share of jsd's mixture, between 0 and 1."""
    temperature: float = 1.0
    """Divide the logits of both by this: above 1, unlikely tokens count more."""
    hard_loss_weight: float = 0.0
    """Share of the rows' own answers in the loss, in [0, 1); the rest is the teacher's."""
    teacher_cache: str | None = None
    """Folder that keeps the teacher's likeliest tokens: it runs once, and is not in memory while
    the student trains.
    """
    teacher_top_k: int = 64
    """Tokens kept of each position by --teacher_cache; the others are one outcome together."""
    student_layers: list[int] = field(default_factory=list)
    """Begin with these layers of --model_name_or_path alone, numbered from 0, such as 0 2 4 of a
    teacher's six; all by default.
    """

    def __post_init__(self) -> None:
        check_objective(self.objective)
        if self.teacher_cache is None and self.teacher_top_k != type(self).teacher_top_k:
            raise ConfigError(
                f"--teacher_top_k {self.teacher_top_k} is what --teacher_cache keeps, and there is "
                "none: without it the whole distribution is compared"
            )

    @property
    def objective(self) -> Objective:
        """Return what the student is trained for."""
        return Objective(self.divergence, self.beta, self.temperature, self.hard_loss_weight)


@dataclass(frozen=True)
class Taught:
    """What the student learns from, and what the teacher itself achieves."""

    teacher: Teacher
    rows: dict[str, Dataset]
    metrics: dict[str, float]


def check_distill_settings(args: DistillArgs, training_args: SFTConfig) -> None:
    """Refuse settings that distillation cannot honour, before anything is loaded.

    Raises:
        ConfigError: no teacher, shards, documents that are split, or an option that does nothing.
    """
    if not args.teacher_model:
        raise ConfigError(
            "--teacher_model is required: the model to learn from, such as the output directory of "
            "the sft recipe"
        )
    if is_sharded(training_args):
        raise ConfigError(
            "distill reads the student's head itself, which in shards (FSDP, DeepSpeed) is not "
            "whole: train on whole weights, or with an adapter (--use_peft)"
        )
    if training_args.packing and training_args.packing_strategy == "bfd_split":
        raise ConfigError(
            "--packing_strategy bfd_split splits documents, whose parts the teacher would read "
            "without their beginning: use bfd"
        )
    refuse_unread(training_args, UNREAD_BY_DISTILL)


def load_teacher(
    args: DistillArgs, model_args: ModelConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Return the teacher on this process's device, in evaluation mode.

    Raises:
        CheckpointError: there is no causal language model at that place.
    """
    named = replace(
        model_args, model_name_or_path=args.teacher_model, model_revision="main", use_peft=False
    )
    model: Any = load_causal_lm(named, tokenizer)
    return model.to(PartialState().device).eval().requires_grad_(False)


def load_student_tokenizer(
    model_args: ModelConfig, args: DistillArgs, tokenizer_name_or_path: str | None
) -> PreTrainedTokenizerBase:
    """Return the student's tokenizer, which is the teacher's as well.

    Args:
        tokenizer_name_or_path: named by the user; None for the student's own, and where the student
            is an architecture for the teacher's.

    Raises:
        ConfigError: the teacher reads other tokens than the student.
        CheckpointError: one of both has no tokenizer.
    """
    of_teacher = load_tokenizer(
        replace(model_args, model_name_or_path=args.teacher_model, model_revision="main")
    )
    is_new = find_architecture(model_args.model_name_or_path or "") is not None
    if is_new and tokenizer_name_or_path is None:
        return of_teacher

    tokenizer = load_tokenizer(model_args, tokenizer_name_or_path)
    refuse_other_tokenizer(tokenizer, of_teacher, args.teacher_model)
    return tokenizer


def load_student(
    args: DistillArgs, model_args: ModelConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Return the student, of whose layers `--student_layers` may be all that is kept.

    Raises:
        CheckpointError: there is no causal language model at that place.
        ConfigError: layers that it does not have, or weights that layers cannot be taken of.
    """
    kept, name = args.student_layers, model_args.model_name_or_path or ""
    model = load_causal_lm(model_args, tokenizer, new_head=True)
    if not kept:
        return model

    if find_architecture(name) is not None:
        raise ConfigError(
            f"--student_layers keeps trained layers, and {name} is an architecture without: give "
            "it fewer layers itself, or name a model such as the teacher"
        )
    if isinstance(model, PeftModel) or getattr(model, "is_quantized", False):
        raise ConfigError(
            f"--student_layers needs whole weights, and {name} is an adapter or quantised: merge "
            "it first (hfstack run merge_checkpoint), or load it without --load_in_4bit or 8bit"
        )
    return keep_layers(model, kept, "--student_layers")


def prepare_teacher(
    args: DistillArgs,
    model_args: ModelConfig,
    training_args: SFTConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    student: PreTrainedModel,
    encoded: dict[str, Dataset],
) -> Taught:
    """Load the teacher or its cached answers, and measure it on held-out rows.

    Args:
        encoded: ids and labels of each split, not packed.

    Raises:
        ConfigError: packed documents would read each other in the teacher, or the cache cannot be
            written.
        CheckpointError: there is no such teacher, or the cache is damaged.
    """
    if args.teacher_cache is None:
        model = load_teacher(args, model_args, tokenizer)
        if training_args.packing and training_args.max_length is not None:
            keep_documents_apart(
                model, "--packing of the teacher: set it to false", longest=training_args.max_length
            )
        found = answer_loss(model, tokenizer, encoded["eval"]) if "eval" in encoded else {}
        metrics = {f"teacher_{name}": found[name] for name in found if name == "held_out_loss"}
        return Taught(LiveTeacher(model), encoded, metrics)

    cached = _cache_splits(args, model_args, tokenizer, student, encoded)
    metrics = {"teacher_tail_mass": cached["train"].mean_tail}
    if "eval" in cached:
        metrics["teacher_held_out_loss"] = cached["eval"].loss

    # one store for all splits: the places of the later ones go on where the first ends
    rows: dict[str, Dataset] = {}
    first = 0
    for name, split in encoded.items():
        rows[name] = number_scored(split, TEACHER_PLACES, first=first)
        first += len(cached[name].ids)
    return Taught(CachedTeacher(list(cached.values())), rows, metrics)


def _cache_splits(
    args: DistillArgs,
    model_args: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    student: PreTrainedModel,
    encoded: dict[str, Dataset],
) -> dict[str, CachedTop]:
    """Return the cache of each split, made by the first process where it is missing."""
    who, root = describe_teacher(args.teacher_model), Path(args.teacher_cache or "").expanduser()
    k, temperature = args.teacher_top_k, args.temperature
    found: dict[str, CachedTop] = {}
    model: Any = None

    with PartialState().local_main_process_first(), torch.random.fork_rng():
        for name, split in encoded.items():
            folder = root / cache_key(who, split, k=k, temperature=temperature)
            cached = open_cache(folder)
            if cached is None:
                model = load_teacher(args, model_args, tokenizer) if model is None else model
                cached = write_cache(
                    folder,
                    model,
                    tokenizer,
                    split,
                    k=k,
                    temperature=temperature,
                    vocabulary=min(_head_rows(model), _head_rows(student)),
                )
            found[name] = cached
    return found


def _head_rows(model: PreTrainedModel) -> int:
    """Return how many tokens a model has logits of."""
    head: Any = model.get_output_embeddings()
    return int(head.weight.shape[0])


def distill_trainer_settings(training_args: SFTConfig) -> SFTConfig:
    """Return settings for a plain Trainer whose rows are encoded, packed and numbered."""
    settings = copy.copy(training_args)
    settings.remove_unused_columns = False  # the collator reads them
    settings.push_to_hub = False  # checkpoints are pushed by what the recipe hands to `protect`
    return settings


class WithPlaces:
    """Add the places of tokens in the teacher's cache to what a collator makes.

    Args:
        collate: makes `input_ids`, `labels` and what else the model reads.
    """

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return a batch; TEACHER_PLACES are (B, T) int64, 0 where nothing is scored."""
        batch = self.collate([{**row} for row in rows])
        if TEACHER_PLACES not in rows[0]:
            return batch
        places = [torch.tensor(row[TEACHER_PLACES]) for row in rows]
        if len(batch["input_ids"]) != len(rows):  # joined for flash attention
            batch[TEACHER_PLACES] = torch.cat(places)[None]
        else:
            batch[TEACHER_PLACES] = torch.nn.utils.rnn.pad_sequence(places, batch_first=True)
        return batch
