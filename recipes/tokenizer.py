"""Train a tokenizer on your own text and measure it on text that it has not seen.

    hfstack run tokenizer --datasets stories.jsonl --vocab_size 4096
    python recipes/tokenizer.py --config recipes/tokenizer.yaml --datasets stories.jsonl

reads   rows with a column of text, as a stream
writes  a tokenizer that AutoTokenizer loads, and run.json, in --output_dir
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from hfstack.config import command_line
from hfstack.data.columns import require_columns
from hfstack.data.sources import (
    DataArgs,
    Source,
    SourceLog,
    describe_sources,
    iterate_rows,
)
from hfstack.errors import ConfigError, DataError
from hfstack.runs.run import Run
from hfstack.tokens.train_tokenizer import TokenizerKind, measure_tokenizer, train_tokenizer

SHOWN_TOKENS = 25  # rows of each table


@dataclass
class TokenizerArgs:
    """What the tokenizer is to be."""

    output_dir: str = "runs/tokenizer"
    """Folder for the tokenizer and run.json."""
    kind: TokenizerKind = "bpe"
    """bpe (byte-level, for language models), unigram (SentencePiece's) or wordpiece (BERT's, for
    masked models).
    """
    vocab_size: int = 16384
    """Tokens in the vocabulary, special tokens included."""
    extra_special_tokens: list[str] = field(default_factory=list)
    """More strings that are always one token, beside those of the chat template."""
    lowercase: bool = False
    """Fold case and strip accents (wordpiece only)."""
    min_frequency: int = 2
    """Do not merge pairs that are seen less often (bpe, wordpiece)."""
    blank_runs: int = 0
    """Make each run of 2 to this many blanks one token, so that code keeps its indentation (bpe);
    0 makes none.
    """
    model_max_length: int | None = None
    """Longest text, in tokens, that the model will read; kept with the tokenizer."""


def main(data_args: DataArgs, tokenizer_args: TokenizerArgs) -> dict[str, float]:
    """Train, measure and save; return the metrics."""
    settings = asdict(tokenizer_args)
    output_dir = settings.pop("output_dir")
    with Run.start(__file__, output_dir, data_args, tokenizer_args) as run:
        if not data_args.datasets:
            raise ConfigError("datasets: name at least one, e.g. --datasets stories.jsonl")

        # data
        log: SourceLog = {}
        read = partial(
            read_texts,
            log=log,
            data_args=data_args,
            quarantine_file=run.output_dir / "quarantine.jsonl",
        )
        own_eval = bool(data_args.eval_datasets)
        fraction = 0.0 if own_eval else data_args.held_out_share()

        # tokenizer
        train = (
            text
            for text in read(data_args.datasets)
            if not is_held_out(text, fraction, data_args.split_seed)
        )

        tokenizer = train_tokenizer(train, **settings)
        run.record_inputs(train=describe_sources(data_args.datasets, log))

        # measure
        metrics: dict[str, float] = {"vocab_size": len(tokenizer)}

        if own_eval or fraction:
            held_out = (
                text
                for text in read(data_args.eval_datasets if own_eval else data_args.datasets)
                if own_eval or is_held_out(text, fraction, data_args.split_seed)
            )

            report, counts = measure_tokenizer(tokenizer, held_out)
            metrics |= asdict(report)
            run.record_inputs(eval=describe_sources(data_args.eval_datasets, log))
            most = [
                [show(tokenizer, token), count] for token, count in counts.most_common(SHOWN_TOKENS)
            ]
            run.add_table("most_frequent_tokens", ["token", "held-out count"], most)

        longest = sorted(
            (show(tokenizer, token) for token in range(len(tokenizer))),
            key=lambda token: (-len(token), token),
        )

        run.add_table(
            "longest_tokens",
            ["token", "characters"],
            [[token, len(token) - 2] for token in longest[:SHOWN_TOKENS]],
        )

        # save
        tokenizer.save_pretrained(run.output_dir)
        run.add_artifact("tokenizer", "tokenizer.json")
        return run.finish(metrics)


def read_texts(
    sources: Sequence[Source], *, data_args: DataArgs, quarantine_file: Path, log: SourceLog
) -> Iterator[str]:
    """Yield the text of each row.

    DataError when the column is missing or holds something else.
    """
    column = data_args.text_column

    rows = iterate_rows(
        sources,
        columns={column},
        on_bad_row=data_args.on_bad_row,
        quarantine_file=quarantine_file,
        max_rows=data_args.max_rows,
        log=log,
    )
    for index, row in enumerate(rows):
        if index == 0:
            require_columns([row], {column}, recipe="tokenizer")
        text = row.get(column)
        if not isinstance(text, str):
            raise DataError(
                f"{sources[0].path}: row {index} has {column}={text!r}, which is not text"
            )
        yield text


def is_held_out(text: str, fraction: float, seed: int) -> bool:
    """Choose by a hash of the text, so that equal stories are on one side."""
    digest = hashlib.blake2b(
        text.encode(), digest_size=8, key=seed.to_bytes(8, "little", signed=True)
    ).digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


def show(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Write a token so that its spaces and line ends can be seen."""
    return repr(tokenizer.decode([token]))


if __name__ == "__main__":
    command_line(main)
