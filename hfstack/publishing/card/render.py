"""Render the card of a model, adapter, tokenizer or dataset from run.json.

Everything in it comes from the records of the runs, or from what its author stated; what neither
knows is listed as missing. Nothing is loaded and no network is used. Facts are collected here, the
sentences are in card_template.md and the templates that it imports.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hfstack.disk import is_inside
from hfstack.drawing.measures import REINFORCED
from hfstack.drawing.numbers import duration, instant, number
from hfstack.publishing.card import facts
from hfstack.publishing.card.author import AuthorFacts
from hfstack.publishing.card.markdown import Markdown, cells, code, escape, fence, literal
from hfstack.publishing.card.metadata import make_metadata
from hfstack.publishing.card.metrics import (
    before_and_after,
    bias_results,
    count_most_telling,
    list_results,
    safety_results,
    tabulate,
)
from hfstack.publishing.files import CONFIG, PublishedKind
from hfstack.publishing.lineage import Chain, rendering_of
from hfstack.redaction import redact
from hfstack.reporting.runs import Sample, read_samples
from hfstack.runs.model_folder import read_object

_SHOWN_SAMPLE_CHARACTERS = 700
_SHOWN_SAMPLES = 4
_CARD_LABELS = 20


def render_card(
    chain: Chain,
    kind: PublishedKind,
    author: AuthorFacts,
    *,
    repo: str,
    made: datetime,
    base: str = "",
    picture: str | None = None,
    splits: Sequence[str] = (),
) -> str:
    """Return the text of README.md.

    Args:
        repo: Hub id, or the path of a folder.
        base: what an adapter names as its base, "" for no adapter.
        picture: path of the curves beside the card, when there are any.
        splits: of a dataset, the names of its files without .jsonl.
    """
    name = repo.rstrip("/").rsplit("/", 1)[-1]
    origin = base or facts.find_base(chain, kind)
    parts_of_dataset = kind.name == "dataset" and not {"train", "eval"} & set(splits)
    results = tabulate(list_results(chain))
    shown = count_most_telling(list_results(chain))

    content: dict[str, Any] = {
        "card_data": make_metadata(chain, kind, author, name=name, base=origin, splits=splits),
        "title": name,
        "repo": repo,
        "place": f"file://{repo}" if repo.startswith("/") else repo,
        "kind": kind,
        "author": author,
        "base": base,
        "origin": origin,
        "part": next(iter(splits), "") if parts_of_dataset else "",
        "columns": _read_columns(chain.last.directory, splits),
    }

    content |= {
        "results": results[:shown],
        "more_results": results[shown:],
        "bias": tabulate(bias_results(chain)),
        "safety": tabulate(safety_results(chain)),
        "changes": before_and_after(chain)[0],
        "verdict": before_and_after(chain)[1],
        "picture": picture,
        "samples": pick_samples(chain),
        "made": made.isoformat(),
    }
    content |= _model_facts(chain) | _history_facts(chain, author)

    text = _templates().get_template("card_template.md").render(content)
    return re.sub(r"\n{3,}", "\n\n", redact(text)).strip() + "\n"


def render_loading(
    kind: PublishedKind, repo: str, *, chat: bool, base: str = "", part: str = ""
) -> str:
    """Return how a model or a dataset is loaded, as Markdown with code.

    Args:
        repo: Hub id or path that `from_pretrained` takes.
        chat: the tokenizer has a chat template, and the model has learned it.
        base: the model that an adapter belongs to.
        part: of a dataset, the configuration to load, "" for its default.
    """
    module: Any = _templates().get_template("loading_code.md").module
    return str(module.loading(kind, repo, chat=chat, base=base, part=part)).strip()


def pick_samples(chain: Chain) -> list[Sample]:
    """Return the newest sample of each prompt, of the run or of one that measured it."""
    for link in [chain.last, *chain.evaluations]:
        for artifact in ("samples", "completions", "answers"):
            path = link.directory / link.record.artifacts.get(artifact, "-")
            if not path.is_file() or not is_inside(path, link.directory):
                continue
            going = link.record.status != "finished"
            samples = read_samples(path, may_be_incomplete=going)
            newest = {sample.prompt: sample for sample in samples if sample.prompt}
            if newest:
                return list(newest.values())[:_SHOWN_SAMPLES]
    return []


def _templates() -> Environment:
    """Return the environment that the card's templates need."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        autoescape=False,  # of HTML: what is printed is escaped as Markdown
        finalize=escape,
    )

    environment.filters |= {
        "number": number,
        "duration": duration,
        "instant": instant,
        "energy": facts.format_energy,
        "counts": facts.format_counts,
        "truncated": _truncate,
        "markdown": Markdown,
        "code": code,
        "cells": cells,
        "listed": lambda values: Markdown(", ".join(str(escape(one)) for one in values)),
        "literal": literal,
        "fenced": fence,
    }
    return environment


def _model_facts(chain: Chain) -> dict[str, Any]:
    """Return what the card says of the model itself."""
    folder, record = chain.last.directory, chain.last.record
    config = read_object(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    has_template = (folder / "chat_template.jinja").is_file()
    context = _count(config, "max_position_embeddings") or _count(config, "n_positions")

    # The number of parameters is recorded by this run or by the pretraining behind it.
    records = (link.record for link in reversed(chain.links))
    known = (each.metrics["parameters"] for each in records if "parameters" in each.metrics)
    parameters = next(known, None)

    table: dict[str, str | None] = {}
    if config:
        table["Architecture"] = str((config.get("architectures") or [config.get("model_type")])[0])
    table["Parameters"] = f"{parameters:,.0f}" if parameters else None
    table["Context"] = f"{context:,} tokens" if context else None
    vocabulary = _count(config, "vocab_size")
    table["Vocabulary"] = f"{vocabulary:,} tokens" if vocabulary else None
    table["Weights"] = config.get("dtype")
    if config:
        table["Chat template"] = "yes" if has_template else "no"
    labels = list((config.get("id2label") or {}).values())
    if len(labels) > 1:
        table["Labels"] = ", ".join(map(str, labels[:_CARD_LABELS]))

    return {
        "facts": [(name, value) for name, value in table.items() if value],
        "has_config": bool(config),
        "chat": has_template and rendering_of(chain).get("form", "chat") == "chat",
        "parameters": parameters,
        "context": context,
        "newly_initialised": facts.was_newly_initialised(chain),
        "recipe": record.recipe,
        "reinforced": record.recipe in REINFORCED,
        "version": record.versions.get("hfstack"),
        "commit": record.commit,
        "ended": record.ended,
    }


def _count(config: dict[str, Any], name: str) -> int | None:
    """Return a number of a config.json, None where it has none of that name."""
    value = config.get(name)
    return value if isinstance(value, int) else None


def _history_facts(chain: Chain, author: AuthorFacts) -> dict[str, Any]:
    """Return what the card says of how it was made, and what nobody recorded."""
    data = facts.list_data(chain, author)
    return {
        "measurements": facts.list_measurements(chain),
        "chain": facts.list_chain(chain),
        "total": facts.total_use(chain),
        "data": data,
        "contamination": facts.list_contamination(chain),
        "cleaning": facts.list_cleaning(chain),
        "settings": facts.last_settings(chain),
        "environments": facts.list_environments(chain),
        "commands": facts.list_commands(chain),
        "missing": facts.list_missing(chain, data),
    }


def _read_columns(folder: Path, splits: Sequence[str]) -> dict[str, list[str]]:
    """Return the columns of each split of a dataset, from its first row."""
    columns = {}
    for split in splits:
        with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
            first = file.readline()
        columns[split] = list(json.loads(first)) if first else []
    return columns


def _truncate(text: str) -> str:
    """Return a text, truncated if long."""
    if len(text) <= _SHOWN_SAMPLE_CHARACTERS:
        return text
    return f"{text[:_SHOWN_SAMPLE_CHARACTERS]} ..."
