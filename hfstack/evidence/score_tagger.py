"""Score a finished tagger on sentences by the functions of its training.

Legend: N sentences.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy
from accelerate import Accelerator
from datasets import Dataset
from transformers import TrainingArguments
from trl import ModelConfig

from hfstack.evidence.scored import (
    ScoreArgs,
    Scored,
    Scorer,
    evaluation_settings,
    named,
    predict_held_out,
)
from hfstack.models.heads import padding_id
from hfstack.tasks.shared.task_models import check_length, load_finished
from hfstack.tasks.shared.token_tasks import InOrderTrainer, token_loss_func
from hfstack.tasks.token_classification import data as tagging
from hfstack.tasks.token_classification import metrics as tag_scores


def load_tag_scorer(args: ModelConfig, how: ScoreArgs, train: Dataset | None = None) -> Scorer:
    """Load a finished tagger.

    Args:
        train: rows that a naive tagger learns from, as in training; None for no such baseline.

    Raises:
        CheckpointError: there is no whole tagger.
    """
    model, tokenizer, info = load_finished(args, "TokenClassification")
    model.to(Accelerator().device)  # pyright: ignore[reportArgumentType]
    config: Any = model.config
    names = [config.id2label[index] for index in range(config.num_labels)]
    length = check_length(how.max_length or info.get("max_length"), config, tokenizer)
    tokens_column = how.text_column or info.get("tokens_column", "tokens")
    tags_column = how.label("") or None
    read = partial(
        tagging.read_sentences,
        tokens_column=tokens_column,
        tags_column=tags_column,
        tag_names=names,
    )

    def score(rows: Dataset) -> Scored:
        # refused where the model does not know a tag; entities that are not whole stay
        sentences = tagging.check_tags(read(rows, name="eval"), names, bad_tags="keep", name="eval")
        windows = tagging.encode_sentences(
            sentences,
            tokenizer,
            max_length=length,
            tag_ids={tag: index for index, tag in enumerate(names)},
        )
        trainer = InOrderTrainer(
            model=model,
            args=TrainingArguments(**evaluation_settings(how.batch_size)),
            processing_class=tokenizer,
            data_collator=partial(tagging.collate_sentences, pad_token_id=padding_id(tokenizer)),
            compute_loss_func=token_loss_func(0.0),
            preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1),
        )
        losses, choices = predict_held_out(trainer, tagging.as_tag_dataset(windows))
        found = tag_scores.word_tags(choices, windows, sentences, names)
        learned = None if train is None else read(train, name="train")
        return _tags_as_scored(sentences, found, names, losses, learned)

    return Scorer({tokens_column, *tagging.tags_columns(tags_column)}, score)


def _tags_as_scored(
    sentences: list[tagging.Sentence],
    found: list[list[str]],
    names: Sequence[str],
    losses: dict[str, float],
    train: list[tagging.Sentence] | None,
) -> Scored:
    gold = [sentence.tags for sentence in sentences]
    scheme = tag_scores.scheme_of(gold, found, names)
    # (N, 2): right words, and words
    words = numpy.array(
        [
            (sum(a == b for a, b in zip(*pair, strict=True)), len(pair[0]))
            for pair in zip(gold, found, strict=True)
        ]
    )
    entities = None if scheme is None else tag_scores.entity_counts(gold, found, scheme)  # (N, 3)

    def measure(indices: Sequence[int]) -> dict[str, float]:
        true, said = [gold[i] for i in indices], [found[i] for i in indices]
        measured = tag_scores.tag_metrics(true, said, names)
        if scheme is not None:
            measured |= tag_scores.f1_interval(true, said, scheme=scheme)
        return measured | {"rows": len(true)}

    def resample(index: numpy.ndarray[Any, Any]) -> dict[str, float]:
        right, total = words[index].sum(axis=0)
        measured = {"tag_accuracy": float(right / total)}
        if entities is not None:
            measured["entity_f1"] = tag_scores.f1_of_counts(entities[index].sum(axis=0).tolist())
        return measured

    metrics = named(measure(range(len(gold)))) | losses
    if train is not None:
        metrics |= tag_scores.beside_baseline(train, sentences, found, names)
    return Scored(
        metrics=metrics,
        main="entity_f1" if scheme is not None else "tag_accuracy",
        places=list(range(len(gold))),
        answers=[
            {"words": sentence.words, "true": sentence.tags, "tags": tags}
            for sentence, tags in zip(sentences, found, strict=True)
        ],
        measure=measure,
        resample=resample,
        right=[a == b for a, b in zip(gold, found, strict=True)],
        tables={"scores by type": tag_scores.type_table(gold, found, names)},
    )
