"""Search passages by meaning: build an index of a file, ask it or serve it.

    accelerate launch recipes/search.py --config recipes/search.yaml --datasets passages.jsonl
    hfstack run search --datasets passages.jsonl --query "How do I get a refund?"   # the same

reads   a model that embed has trained, or one of sentence-transformers; rows with a passage, or an
        index that was built before; queries
writes  the index, results.jsonl (or results.csv): the passages of each query, best first, and
        run.json in --output_dir
"""

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.reading.jsonl import write_jsonl
from hfstack.data.sources import OnBadRow, Source, as_sources, describe_sources, iterate_rows
from hfstack.errors import ConfigError
from hfstack.models.loading import require_model_name
from hfstack.runs.inputs import digests
from hfstack.runs.run import Run, RunArgs
from hfstack.tasks.retrieval.index import PassageIndex, Search, build_index, hash_model
from hfstack.tasks.retrieval.search import Searcher, answer_rows, embed_texts, load_search_models
from hfstack.tasks.retrieval.server import serve_searches
from hfstack.tasks.shared.predict import write_csv


@dataclass
class IndexArgs:
    """What is searched."""

    datasets: list[Source] = field(default_factory=list)
    """Rows with a passage each, of which an index is built: local files, globs, folders or Hub ids.
    """
    index: str | None = None
    """Folder of an index that was built before, instead of datasets."""
    passage_column: str = "passage"
    """Column of the text that is searched."""
    keep_columns: list[str] = field(default_factory=list)
    """Columns to return beside it, such as an id or an answer."""
    search: Search = "auto"
    """exact reads every vector; approximate is faster, keeps them in memory and may miss some; auto
    is exact up to 100,000 passages.
    """
    max_rows: int | None = None
    """Index at most this many rows of each dataset; all by default."""
    on_bad_row: OnBadRow = "fail"
    """What to do with a malformed row of a local file: fail, skip it, or quarantine it into a file.
    """

    def __post_init__(self) -> None:
        if bool(self.datasets) == (self.index is not None):
            raise ConfigError(
                "name what is searched: --datasets passages.jsonl to build an index, or --index of "
                "one that was built"
            )


@dataclass
class AskArgs:
    """What is asked."""

    query: list[str] = field(default_factory=list)
    """Queries, each in quotes."""
    queries_file: Source | None = None
    """Rows with a query each."""
    query_column: str = "query"
    """Column of the query in queries_file."""
    top: int = 10
    """Passages returned of each query."""
    reranker: str | None = None
    """A cross_encoder of embed, or one of the Hub, that puts what was found in order."""
    serve: bool = False
    """Answer requests on this machine, until Ctrl-C."""
    port: int = 8766
    """Port of --serve; 0 for any that is free."""
    format: Literal["jsonl", "csv"] = "jsonl"
    """Of the results."""


@dataclass
class EncodeArgs:
    """How texts are read."""

    batch_size: int = 32
    """Texts of a forward pass."""
    max_length: int | None = None
    """Tokens of a text that are read; by default what the model is set to."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"--batch_size must be at least 1, got {self.batch_size}")


def main(
    model_args: ModelConfig,
    index_args: IndexArgs,
    ask_args: AskArgs,
    encode_args: EncodeArgs,
    run_args: RunArgs,
) -> dict[str, float]:
    """Build or open the index, answer what is asked, and return counts."""
    settings = (model_args, index_args, ask_args, encode_args, run_args)
    with Run.start(__file__, run_args.output_dir, *settings) as run:
        # models
        batch_size = encode_args.batch_size
        run.record_inputs(model_args.model_name_or_path, ask_args.reranker, index_args.index)
        model, reranker = load_search_models(
            model_args, ask_args.reranker, max_length=encode_args.max_length
        )
        model_hash = hash_model(model)

        # index
        folder = Path(index_args.index or run.output_dir / "index")
        if index_args.index is None:
            sources = as_sources(index_args.datasets)
            run.record_inputs(passages=describe_sources(sources))
            rows = iterate_rows(
                sources,
                columns=[index_args.passage_column, *index_args.keep_columns],
                on_bad_row=index_args.on_bad_row,
                quarantine_file=run.output_dir / "quarantine.jsonl",
                max_rows=index_args.max_rows,
            )

            # what it depends on: an index that was begun with the same is gone on with
            what = f"{asdict(index_args)} {digests(run.record.models)} {run.record.data}"
            build_index(
                folder,
                rows,
                partial(embed_texts, model, batch_size=batch_size, are_queries=False),
                text_column=index_args.passage_column,
                keep=index_args.keep_columns,
                identity=f"{model_hash} {what}",
                model=require_model_name(model_args),
                model_hash=model_hash,
                search=index_args.search,
            )
            run.add_artifact("index", "index/index.json")
        index = PassageIndex(folder, model_hash=model_hash, exact=index_args.search == "exact")
        searcher = Searcher(model, index, reranker, batch_size=batch_size)

        # queries
        asked = [{ask_args.query_column: query} for query in ask_args.query]
        if ask_args.queries_file is not None:
            asked_of = as_sources([ask_args.queries_file])
            run.record_inputs(queries=describe_sources(asked_of))
            asked += iterate_rows(asked_of, columns=[ask_args.query_column])

        # answer
        path = run.output_dir / "results.jsonl"
        with write_jsonl(path) as add:
            hits = answer_rows(
                searcher, asked, ask_args.query_column, top=ask_args.top, batch_size=batch_size
            )
            for hit in hits:
                add(hit)
                if ask_args.query:
                    print(
                        f"{hit['rank']:>3}  {hit['score']:.3f}  {hit[index.info.text_column][:100]}"
                    )

        path = write_csv(path) if ask_args.format == "csv" else path
        run.add_artifact("results", path.name)
        if ask_args.serve:
            serve_searches(searcher, port=ask_args.port, top=ask_args.top)
        return run.finish({"passages": index.info.passages, "queries": len(asked)})


if __name__ == "__main__":
    command_line(main)
