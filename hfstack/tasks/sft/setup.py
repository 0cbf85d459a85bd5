"""Prepare instruction rows for TRL's SFTTrainer: templates, checks, batches."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer, clone_chat_template
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from hfstack.data.places import FindPlaces, RefusedRows, join_refused
from hfstack.errors import ConfigError, refusals_of_upstream
from hfstack.logs import get_logger
from hfstack.models.context import context_length
from hfstack.models.counting import flops_per_token
from hfstack.models.isolation import keep_documents_apart
from hfstack.row_counts import RowCounts
from hfstack.runs.environment import uses_deepspeed
from hfstack.tasks.sft.encoding import encode_usable_rows, read_conversations
from hfstack.tasks.sft.packing import PackedCollator, pack_documents
from hfstack.tokens.chat import read_chat_template
from hfstack.tokens.rendering import log_odd_turns, log_other_prompts
from hfstack.tokens.special_tokens import end_token_ids
from hfstack.training import checks
from hfstack.training.preflight import NO_SHARED_ROW, Problems
from hfstack.training.settings import total_peak_flops_per_s
from hfstack.training.token_average import EachTokenCounts
from hfstack.training.unread_options import refuse_unread, refuse_unread_settings

logger = get_logger(__name__)


class SFTTrainerByTokens(EachTokenCounts, SFTTrainer):
    """TRL's SFTTrainer, whose evaluation is a mean over tokens."""

    means_are_local = True  # TRL's evaluation passes no count of the other processes' tokens

    @refusals_of_upstream()
    def __init__(self, **given: Any) -> None:
        """Build TRL's trainer; what it refuses is one line."""
        super().__init__(**given)


# what `sft_trainer_settings` sets, whatever the user has
REPLACED = {"dataset_kwargs": "rows are encoded before TRL's trainer sees them"}


def check_sft_settings(
    training_args: SFTConfig, model: PreTrainedModel, rows: dict[str, Dataset]
) -> None:
    """Refuse settings that contradict the rows or the model.

    Raises:
        ConfigError: a length beyond the model's context; packing without a length or as `wrapped`;
            loss on the assistant's turns of rows that have none.
    """
    refuse_unread_settings(training_args)
    refuse_unread(training_args, REPLACED)
    length, longest = training_args.max_length, context_length(model.config)
    if length is not None and longest is not None and length > longest:
        raise ConfigError(
            f"--max_length {length} is longer than the model's context of {longest} tokens; use "
            f"--max_length {longest}"
        )

    if training_args.packing and length is None:
        raise ConfigError("--packing fills rows of --max_length tokens: set --max_length")

    if training_args.packing and training_args.packing_strategy == "wrapped":
        raise ConfigError(
            "--packing_strategy wrapped lets packed documents read each other; use bfd or bfd_split"
        )

    if training_args.assistant_only_loss and "text" in rows["train"].column_names:
        raise ConfigError(
            "rows of text have no assistant turn to learn alone: set --assistant_only_loss false"
        )


def use_template(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    training_args: SFTConfig,
    *,
    chat: bool,
    adapter: bool,
) -> None:
    """Give the tokenizer the chat template and the eos that the settings name.

    Args:
        chat: the rows are conversations.
        adapter: an adapter is trained, so that new tokens could not be learned.

    Raises:
        ConfigError: there is no template, its file is missing, it needs tokens that an adapter
            cannot bring, or the eos is not in the vocabulary.
    """
    if training_args.chat_template_path is not None:
        _set_template(tokenizer, model, training_args.chat_template_path, adapter=adapter)

    if training_args.eos_token is not None:
        if training_args.eos_token not in tokenizer.get_vocab():
            raise ConfigError(
                f"--eos_token {training_args.eos_token!r} is not in the tokenizer's vocabulary"
            )
        tokenizer.eos_token = training_args.eos_token

    if chat and tokenizer.chat_template is None:
        raise ConfigError(
            "the tokenizer has no chat template: name one with --chat_template_path (plain.jinja "
            "fits every tokenizer), or join prompt and completion as they are with --as_chat false"
        )


def _set_template(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, path: str, *, adapter: bool
) -> None:
    """Set the chat template of a file, or that of another tokenizer with its tokens."""
    if tokenizer.chat_template is not None:
        logger.warning(
            "the tokenizer's own chat template is replaced by --chat_template_path %s", path
        )

    if path.endswith((".jinja", ".j2")):
        tokenizer.chat_template = read_chat_template(path)
        return

    if adapter:
        raise ConfigError(
            f"--chat_template_path {path} brings tokens that an adapter cannot learn; name a "
            ".jinja file, or train without --use_peft"
        )

    try:
        clone_chat_template(model, tokenizer, path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--chat_template_path {path}: {reason}") from error


@contextmanager
def training_template(
    tokenizer: PreTrainedTokenizerBase, *, assistant_only: bool
) -> Iterator[str | None]:
    """Let a known family's template mark the assistant's tokens during encoding.

    Yields:
        The tokenizer's own template, which it has again afterwards; None where it stays.
    """
    template: Any = tokenizer.chat_template
    own_template: str | None = None
    if assistant_only and template is not None and not has_generation_markers(template):
        try:
            tokenizer.chat_template = get_training_chat_template(tokenizer)
            own_template = template
            logger.info(
                "rows are encoded with TRL's variant of this chat template, which marks the "
                "assistant's tokens"
            )
        except ValueError:
            logger.info(
                "the chat template is not of a family for which TRL knows where the assistant's "
                "tokens are"
            )

    try:
        yield own_template
    finally:
        tokenizer.chat_template = template


def encode_rows(
    rows: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    training_args: SFTConfig,
    on_bad_row: str,
    *,
    row_counts: RowCounts | None = None,
    find_places: FindPlaces | None = None,
) -> dict[str, Dataset]:
    """Return ids and labels of every split.

    Args:
        rows: converted rows of each split.
        on_bad_row: `fail`, or `skip` to leave out rows that cannot be learned from.
        row_counts: gets what is left out.
        find_places: names bad rows by file and line.

    Raises:
        DataError: a row cannot be learned from, or the template does not mark the assistant.
    """
    assistant_only = training_args.assistant_only_loss
    completion_only = training_args.completion_only_loss is not False
    splits_documents = training_args.packing and training_args.packing_strategy == "bfd_split"
    encoded: dict[str, Dataset] = {}

    with training_template(tokenizer, assistant_only=assistant_only) as own_template:
        # before the rows: without the marks every row would be a bad row
        if "messages" in rows["train"].column_names:
            if assistant_only and completion_only:
                assistant_only = needs_marks(rows, tokenizer)
            checks.preflight(template_problems(rows, tokenizer, assistant_only=assistant_only))

        refused: list[RefusedRows] = []
        for name, split in rows.items():
            try:
                usable = encode_usable_rows(
                    split,
                    tokenizer,
                    name=name,
                    max_length=training_args.max_length or context_length(model.config),
                    assistant_only=assistant_only,
                    completion_only=completion_only,
                    on_bad_row=on_bad_row,
                    truncate=not splits_documents,
                    processes=training_args.dataset_num_proc,
                    row_counts=row_counts,
                    find_places=find_places,
                    own_template=own_template,
                )
                encoded[name] = usable.select_columns(["input_ids", "labels"])
            except RefusedRows as error:
                refused.append(error)

    # all at once, whichever side of the split they are on
    if refused:
        raise join_refused(refused)
    return encoded


def needs_marks(rows: dict[str, Dataset], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the template has to mark the assistant's tokens.

    The answer of a prompt with one completion is known without marks: it is what follows the
    prompt. A template that marks it is followed all the same.

    Args:
        rows: converted conversations of each split.
        tokenizer: with the template that encodes them.
    """
    if checks.template_marks_generation(tokenizer) is None:
        return True

    for split in rows.values():
        for row in cast(
            Any, split.select_columns(["messages", "prompt_turns", "history", "problem"])
        ):
            if row["problem"]:
                continue  # could not be read, and is reported later
            answers = len(json.loads(row["messages"])) - row["prompt_turns"]
            if not row["prompt_turns"] or row["history"] or answers != 1:
                return True

    logger.info(
        "the chat template does not mark the assistant's tokens: what follows the prompt is learned"
    )
    return False


def template_problems(
    rows: dict[str, Dataset], tokenizer: PreTrainedTokenizerBase, *, assistant_only: bool
) -> Problems:
    """Check that the chat template marks answers, and renders every turn of the rows.

    Args:
        rows: converted conversations of each split.
        tokenizer: with the template that encodes them.
    """
    problems: Problems = {}
    if assistant_only:
        marked = checks.template_marks_generation(tokenizer)
        problems["the template marks the assistant"] = marked
        if marked:
            return problems

    for name, split in rows.items():
        problems[f"every {name} turn is rendered"] = checks.every_turn_is_rendered(
            read_conversations(split), tokenizer, assistant_only=assistant_only
        )
    turns = (turns for turns, _ in read_conversations(rows["train"]))
    log_odd_turns(turns, tokenizer, weights=True)
    log_other_prompts(read_conversations(rows["train"]), tokenizer)
    return problems


def row_problems(
    rows: dict[str, Dataset],
    encoded: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    training_args: SFTConfig,
) -> Problems:
    """Check rows and their encoding for what trains silently wrong.

    Args:
        rows: converted rows of each split.
        encoded: their ids and labels, as `encode_rows` returns them.

    Returns:
        What `checked` refuses to train on.

    Raises:
        ConfigError: documents of packed rows would read each other in this model.
    """
    ends = end_token_ids(model, tokenizer)
    bos = cast(int | None, tokenizer.bos_token_id)
    results: Problems = {"pad is not eos": checks.pad_is_not_eos(tokenizer, ends)}

    for name, split in encoded.items():
        results[f"{name} labels are scored"] = checks.some_label_is_scored(split["labels"])
        results[f"{name} answers end"] = checks.labels_reach_eos(split["labels"], ends)
        results[f"{name} has no double bos"] = checks.no_double_bos(split["input_ids"], bos)

    if "eval" in rows:
        texts = (
            (json.dumps(row, ensure_ascii=False) for row in rows[name])
            for name in ("train", "eval")
        )
        results[NO_SHARED_ROW] = checks.train_and_eval_are_disjoint(*texts)

    if training_args.packing and can_probe(model, training_args):
        keep_documents_apart(
            model, "--packing: set it to false", longest=cast(int, training_args.max_length)
        )

    return results


def pack_rows(encoded: dict[str, Dataset], training_args: SFTConfig) -> dict[str, Dataset]:
    """Return the splits as the settings want them in batches: packed, or row by row."""
    if not training_args.packing:
        return encoded

    length = cast(int, training_args.max_length)
    packed = dict(encoded)
    for name, split in encoded.items():
        if name == "train" or training_args.eval_packing is not False:
            packed[name] = pack_documents(
                split, max_length=length, strategy=training_args.packing_strategy
            )

    return packed


def uses_flash_attention(model: PreTrainedModel) -> bool:
    """Return whether attention is a flash kernel, which takes joined documents."""
    return "flash" in str(model.config._attn_implementation)


def can_probe(model: PreTrainedModel, training_args: SFTConfig) -> bool:
    """Return whether the model can run before the Trainer has placed it.

    Not in shards, nor with a GPU's attention on a CPU.
    """
    return not uses_deepspeed(training_args) and not (
        uses_flash_attention(model) and model.device.type == "cpu"
    )


def collator_for(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, training_args: SFTConfig
) -> Any:
    """Return the collator: packed rows stacked, joined for flash attention, or padded."""
    pad, packing = cast(int, tokenizer.pad_token_id), training_args.packing
    if packing and not uses_flash_attention(model):
        return PackedCollator(pad)
    multiple: Any = None if packing else training_args.pad_to_multiple_of
    return DataCollatorForLanguageModeling(pad, padding_free=packing, pad_to_multiple_of=multiple)


def sft_trainer_settings(training_args: SFTConfig) -> SFTConfig:
    """Return settings for an SFTTrainer whose rows are encoded already."""
    settings = copy.copy(training_args)
    settings.dataset_kwargs = {"skip_prepare_dataset": True}
    settings.packing = settings.assistant_only_loss = False
    settings.completion_only_loss = False
    settings.chat_template_path = settings.eos_token = None
    settings.push_to_hub = False  # checkpoints are pushed by what the recipe hands to `protect`
    return settings


class TokenCount(TrainerCallback):
    """Log the useful tokens so far as `num_tokens`.

    TRL 1.16 takes a batch without an attention mask for one long row, and counts the positions of
    the first row alone (SFTTrainer.compute_loss).

    Args:
        tokens_per_step: useful tokens of a mean optimizer step, over all processes.
    """

    def __init__(self, tokens_per_step: float) -> None:
        self.tokens_per_step = tokens_per_step

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Correct the entry that was just logged."""
        for logs in (kwargs["logs"], state.log_history[-1]):
            for name in ("num_tokens", "eval_num_tokens"):
                if name in logs:
                    logs[name] = float(state.global_step * self.tokens_per_step)


def step_costs(
    rows: Dataset, model: PreTrainedModel, training_args: SFTConfig, *, adapter: bool
) -> dict[str, Any]:
    """Return what `Throughput` needs: tokens a step, FLOPs a token, the device's peak.

    All are of the mean row.

    Args:
        adapter: the weights are frozen, so the backward pass takes no gradient of them: 4 N FLOPs
            instead of 6 N.
    """
    mean_tokens = sum(map(len, rows["input_ids"])) / len(rows)
    documents = 1.0
    if "seq_lengths" in rows.features:
        documents = sum(map(len, rows["seq_lengths"])) / len(rows)

    sequences = (
        training_args.train_batch_size
        * training_args.gradient_accumulation_steps
        * training_args.world_size
    )

    # Attention reaches over one document, so its cost is that of the mean document.
    flops = flops_per_token(model.config, max(1, round(mean_tokens / documents))).train
    return {
        "tokens_per_step": round(mean_tokens * sequences),
        "flops_per_token": flops * (2 / 3 if adapter else 1),
        "peak_flops_per_s": total_peak_flops_per_s(training_args),
    }
