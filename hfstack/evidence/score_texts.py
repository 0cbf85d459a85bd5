"""Score a finished encoder-decoder by the functions of its training."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy
from accelerate import Accelerator
from datasets import Dataset
from transformers import Seq2SeqTrainingArguments
from trl import ModelConfig

from hfstack.evidence.scored import ScoreArgs, Scored, Scorer, evaluation_settings, named
from hfstack.models.heads import padding_id
from hfstack.tasks.seq2seq.data import (
    EncodedPairs,
    Pair,
    collate_pairs,
    encode_sources_and_targets,
    read_sources_and_targets,
)
from hfstack.tasks.seq2seq.metrics import check_metrics, decode_texts, score_texts
from hfstack.tasks.seq2seq.model import (
    decoder_shift,
    load_finished_seq2seq,
    required_end_ids,
    text_lengths,
)
from hfstack.tasks.seq2seq.trainer import InOrderSeq2SeqTrainer
from hfstack.tasks.shared.text_overlap import BleuCounts, count_for_bleu, rouge_of_texts
from hfstack.tasks.shared.token_tasks import token_loss_func

_TIMING_METRICS = ("_runtime", "_per_second", "_preparation_time")


def load_text_scorer(args: ModelConfig, how: ScoreArgs) -> Scorer:
    """Load a finished encoder-decoder or adapter.

    Raises:
        CheckpointError: there is no whole model.
        MissingExtraError: the packages of the scores are not installed.
    """
    check_metrics()
    model, tokenizer, info = load_finished_seq2seq(args)
    model.to(Accelerator().device)
    lengths = text_lengths(
        how.max_length or info.get("max_source_length"), None, model.config, tokenizer
    )
    columns = (how.text_column or info.get("source_column", "source"), how.label("target"))

    def score(rows: Dataset) -> Scored:
        pairs = read_sources_and_targets(rows, columns, name="eval")
        held = encode_sources_and_targets(
            pairs,
            tokenizer,
            lengths=lengths,
            ends=required_end_ids(model, tokenizer),
            prefix=info.get("source_prefix", ""),
            name="eval",
            held_out=True,
        )
        found, texts = _generate(model, tokenizer, held, how.batch_size)
        # rows are sorted by length for the model; they are scored in the order of the file
        by_place = dict(zip(held.places, texts, strict=True))
        return _texts_as_scored(pairs, [by_place[place] for place in range(len(pairs))], found)

    outer = {column.partition(".")[0] for column in columns}
    return Scorer({*columns, *outer}, score)


def _generate(
    model: Any, tokenizer: Any, held: EncodedPairs, batch_size: int | None
) -> tuple[dict[str, float], list[str]]:
    """Return the loss of the rows, and what is generated for each."""
    settings = Seq2SeqTrainingArguments(
        **evaluation_settings(batch_size),
        generation_max_length=model.generation_config.max_length,
        generation_num_beams=model.generation_config.num_beams or 1,
    )

    # nothing is trained: the Trainer of training generates and scores in its order
    shift = decoder_shift(model)
    trainer = InOrderSeq2SeqTrainer(
        model=model,
        args=settings,
        eval_dataset=cast(Any, held.rows),
        processing_class=tokenizer,
        data_collator=partial(collate_pairs, pad_token_id=padding_id(tokenizer), shift=shift),
        compute_loss_func=token_loss_func(0.0),
    )
    found, ids = trainer.generate_held_out()
    kept = {name: value for name, value in found.items() if not name.endswith(_TIMING_METRICS)}
    return kept, decode_texts(ids, tokenizer)


def _texts_as_scored(pairs: list[Pair], texts: list[str], losses: dict[str, float]) -> Scored:
    targets = [pair.targets for pair in pairs]
    bleu: BleuCounts = count_for_bleu(texts, targets)
    rouge = rouge_of_texts(texts, targets)  # (N,) of each kind
    exact = [
        text.strip() in {target.strip() for target in pair.targets}
        for text, pair in zip(texts, pairs, strict=True)
    ]

    def measure(indices: Sequence[int]) -> dict[str, float]:
        return score_texts([texts[i] for i in indices], [pairs[i] for i in indices])[0]

    def resample(index: numpy.ndarray[Any, Any]) -> dict[str, float]:
        means = {kind: float(values[index].mean()) for kind, values in rouge.items()}
        return {"bleu": bleu.score(index)} | means

    whole = measure(range(len(pairs)))
    own = {name: value for name, value in whole.items() if not name.startswith("baseline_")}
    baselines = {name: value for name, value in whole.items() if name.startswith("baseline_")}
    return Scored(
        metrics=losses | named(own) | baselines,
        main="bleu",
        places=list(range(len(pairs))),
        answers=[
            {"source": pair.source, "references": pair.targets, "text": text}
            for pair, text in zip(pairs, texts, strict=True)
        ],
        measure=measure,
        resample=resample,
        right=exact,
    )
