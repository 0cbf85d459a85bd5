"""run.json -> README.md: the card of a model, adapter, tokenizer or dataset, valid for the Hub's model index.

Everything in it comes from the records of the runs, or from what its author said; what neither knows is said to be
missing. Nothing is loaded and no network is used.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig

from hfstack.errors import ConfigError
from hfstack.models.context import context_length
from hfstack.publishing.card import facts as card_facts
from hfstack.publishing.card import metrics as card_metrics
from hfstack.publishing.card import sentences as card_words
from hfstack.publishing.card.energy import METHOD
from hfstack.publishing.card.facts import Wording
from hfstack.publishing.card.sentences import Words
from hfstack.publishing.files import CONFIG, PublishedKind, read_json
from hfstack.publishing.lineage import Chain, shorten_paths
from hfstack.redaction import redact

_TEMPLATE = Path(__file__).with_name("card_template.md")
_SHOWN_CHARACTERS = 700
_MODEL_INDEX_RESULTS = 10
_REINFORCED = frozenset({"rloo", "grpo", "ppo"})


def render_card(
    chain: Chain,
    kind: PublishedKind,
    words: Words,
    wording: Wording,
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
    origin = base or card_facts.base_of(chain, kind)
    name = repo.rstrip("/").rsplit("/", 1)[-1]
    found = card_metrics.results(chain)
    bias = card_metrics.bias(chain, wording.metric)
    samples = read_samples(chain)
    data = card_facts.data_rows(chain, words, wording)
    content = _model_part(chain, kind, words, wording, repo=repo, origin=origin, base=base)
    if kind.name == "dataset" and not {"train", "eval"} & set(splits):
        content["loading"] = card_words.loading(
            kind, repo, chat=False, base="", part=next(iter(splits), "")
        )
    content |= _history_part(chain, data, wording)
    rows, shown = card_metrics.rows(found, wording.metric), card_metrics.shown_first(found)
    content |= {
        "title": name,
        "repo": f"file://{repo}" if repo.startswith("/") else repo,
        "columns": _columns(chain.last.directory, splits),
        "results": rows[:shown],
        "more_results": rows[shown:],
        "results_note": _results_note(chain),
        "bias": bias,
        "picture": picture,
        "samples": [_sample(prompt, completion) for prompt, completion in samples],
        "licence": f"`{words.licence}`, as its author states."
        if words.licence
        else "Not stated by its author.",
        "missing": card_facts.missing_facts(
            chain,
            words,
            data,
            bias_measured=not bias.startswith("Bias was"),
            has_samples=bool(samples),
        ),
        "made": wording.instant(made.isoformat()),
    }
    metadata, card = _metadata(
        chain, kind, words, found, base=origin, name=name, wording=wording, splits=splits
    )
    text = str(card.from_template(metadata, template_path=str(_TEMPLATE), **content))
    return re.sub(r"\n{3,}", "\n\n", redact(text)).rstrip() + "\n"


def check_card(text: str, *, dataset: bool = False) -> int:
    """Read a card back as the Hub does, and return the number of results in its model index.

    Raises:
        ConfigError: the metadata is not valid.
    """
    try:
        data = (DatasetCard if dataset else ModelCard)(text).data
        for name in ("base_model", "datasets"):
            value = data.get(name)
            for one in value if isinstance(value, list) else [value] if value else []:
                validate_repo_id(one)
    except (ValueError, HFValidationError) as error:
        raise ConfigError(
            f"the card's metadata is not valid: {' '.join(str(error).split())[:200]}"
        ) from None
    return len(data.get("eval_results") or [])


def read_samples(chain: Chain, limit: int = 4) -> list[tuple[str, str]]:
    """Return (prompt, completion) pairs of the run, or else of one that measured it: the newest of each prompt."""
    for link in [chain.last, *chain.evaluations]:
        for artifact in ("samples", "completions", "answers"):
            path = link.directory / link.record.artifacts.get(artifact, "-")
            if not path.is_file() or not path.resolve().is_relative_to(link.directory):
                continue
            newest: dict[str, str] = {}
            for line in path.read_text(encoding="utf-8").split("\n"):
                row = json.loads(line) if line.strip() else {}
                completion = row.get("completion", row.get("answer"))
                if isinstance(completion, str) and row.get("prompt"):
                    newest[_as_text(row["prompt"])] = completion
            if newest:
                return list(newest.items())[:limit]
    return []


def _model_part(
    chain: Chain,
    kind: PublishedKind,
    words: Words,
    wording: Wording,
    *,
    repo: str,
    origin: str | None,
    base: str,
) -> dict[str, Any]:
    """What the card says of the model itself."""
    link, recipe = chain.last, chain.last.record.recipe
    config = read_json(link.directory / CONFIG) if (link.directory / CONFIG).is_file() else {}
    chat, parameters = (link.directory / "chat_template.jinja").is_file(), _parameters(chain)
    size = f"{parameters:,.0f} parameters" if parameters else ""
    return {
        "summary": card_words.what_it_is(kind, recipe, size=size, base=origin and f"`{origin}`"),
        "facts": _facts(chain, config, wording, base=origin, parameters=parameters, chat=chat),
        "intended_use": card_words.intended_use(kind, words),
        "limits": card_words.limits(
            kind, recipe, words, parameters=parameters, context=_context(config)
        ),
        "loading": card_words.loading(kind, repo, chat=chat, base=base),
        "samples_note": "Not chosen by hand: the last ones that were recorded, cut where they are long.",
    }


def _history_part(chain: Chain, data: list[list[str]], wording: Wording) -> dict[str, Any]:
    """What the card says of how it was made."""
    settings = card_facts.last_settings(chain, wording)
    count = len(chain.links)
    return {
        "chain": card_facts.chain_rows(chain, wording),
        "chain_note": f"{count} recorded run{'s, each after those that it needs' if count > 1 else ''}.",
        "energy_note": f"{card_facts.total_note(chain, wording)} {METHOD}",
        "data": data,
        "cleaning": card_facts.cleaning_note(chain, wording),
        "settings": [
            (key, card_facts.cell(shorten_paths(_plain(value), chain)))
            for key, value in settings.items()
        ],
        "environments": card_facts.environments(chain),
        "reproduce_note": _reproduce_note(chain),
        "commands": card_facts.commands(chain, wording),
    }


def _metadata(
    chain: Chain,
    kind: PublishedKind,
    words: Words,
    found: list[card_metrics.Result],
    *,
    base: str | None,
    name: str,
    wording: Wording,
    splits: Sequence[str],
) -> tuple[Any, Any]:
    """The YAML block, and the class of the card."""
    recipes = list(dict.fromkeys(link.record.recipe for link in chain.links))
    tags = ["hfstack", chain.last.record.recipe, *(["rlhf"] if _REINFORCED & set(recipes) else [])]
    tags += ["reward-model"] if kind.name == "reward" else []
    licence, language = words.licence, list(words.language) or None
    if kind.repo_type == "dataset":
        files = [{"split": split, "path": f"{split}.jsonl"} for split in splits]
        named = [one for one in files if one["split"] in ("train", "eval")]
        configs = [{"config_name": "default", "data_files": named}] if named else []
        configs += [
            {"config_name": one["split"], "data_files": [one]} for one in files if one not in named
        ]
        data = DatasetCardData(
            language=language, license=licence, pretty_name=name, tags=tags, configs=configs
        )
        return data, DatasetCard
    hub_data = [
        str(entry["path"])
        for link in chain.links
        for entry in link.record.data
        if not entry.get("files")
    ]
    telling = found[: min(card_metrics.shown_first(found), _MODEL_INDEX_RESULTS)]
    evaluated = card_metrics.eval_results(telling, kind, wording.metric)
    data = ModelCardData(
        language=language,
        license=licence,
        library_name="peft" if kind.adapter else "transformers",
        pipeline_tag=kind.pipeline_tag,
        base_model=base,
        datasets=list(dict.fromkeys(path for path in hub_data if path.count("/") <= 1)) or None,
        tags=tags,
        model_name=name,
        eval_results=evaluated or None,
    )
    return data, ModelCard


def _facts(
    chain: Chain,
    config: dict[str, Any],
    wording: Wording,
    *,
    base: str | None,
    parameters: float | None,
    chat: bool,
) -> list[tuple[str, str]]:
    """The first table: what a reader looks up."""
    last = chain.last.record
    facts = []
    if config:
        facts.append(
            ("Architecture", str((config.get("architectures") or [config.get("model_type")])[0]))
        )
    if parameters:
        facts.append(("Parameters", f"{parameters:,.0f}"))
    if (context := _context(config)) is not None:
        facts.append(("Context", f"{context:,} tokens"))
    if config.get("vocab_size"):
        facts.append(("Vocabulary", f"{config['vocab_size']:,} tokens"))
    if config.get("dtype"):
        facts.append(("Weights", str(config["dtype"])))
    if config:
        facts.append(("Chat template", "yes" if chat else "no"))
    labels = list((config.get("id2label") or {}).values())
    if len(labels) > 1:
        facts.append(("Labels", card_facts.cell(", ".join(map(str, labels[:20])))))
    if config or base:
        facts.append(("Base model", f"`{base}`" if base else card_facts.beginning(chain)))
    facts.append(
        (
            "Recipe",
            f"`{last.recipe}` of hfstack {last.versions.get('hfstack', '(version not recorded)')}",
        )
    )
    commit = str(last.commit or "not recorded")
    facts.append(("Commit", commit if commit == "not recorded" else f"`{commit[:10]}`"))
    facts.append(("Finished", wording.instant(last.ended) if last.ended else "not recorded"))
    return facts


def _parameters(chain: Chain) -> float | None:
    """The number of parameters, as this run or the pretraining behind it has recorded it."""
    return next(
        (
            link.record.metrics["parameters"]
            for link in reversed(chain.links)
            if "parameters" in link.record.metrics
        ),
        None,
    )


def _context(config: dict[str, Any]) -> int | None:
    """Return how many tokens the model of a config.json reads, or None where nothing bounds it."""
    if not config.get("model_type"):
        return None
    try:
        return context_length(AutoConfig.for_model(**config))
    except ValueError:  # a model type or a value that this version of transformers does not know
        return None


def _columns(folder: Path, splits: Sequence[str]) -> str:
    """The columns of each split of a dataset, from its first row."""
    lines = []
    for split in splits:
        with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
            first = file.readline()
        names = ", ".join(f"`{name}`" for name in json.loads(first)) if first else "empty"
        lines.append(f"- `{split}`: {names}")
    return "\n".join(lines)


def _results_note(chain: Chain) -> str:
    """Where the numbers come from."""
    lines = []
    for link in [*chain.evaluations, chain.last]:
        flat = {
            name: value for group in link.record.settings.values() for name, value in group.items()
        }
        against, judge = flat.get("reference_model"), flat.get("reward_model")
        text = f"`{link.label}` measured on {card_metrics.evaluated_on(link)[0]}"
        text += f", against `{shorten_paths(str(against), chain)}`" if against else ""
        judged = against and (
            f"`{shorten_paths(str(judge), chain)}`" if judge else "the rule in its recipe"
        )
        if link.record.recipe in _REINFORCED:
            rewarding = (
                f"`{shorten_paths(str(judge), chain)}`" if judge else "the functions in its recipe"
            )
            text += f", rewarded by {rewarding}"
        lines.append(f"{text}, judged by {judged}." if judged else f"{text}.")
    return " ".join([*lines, "Each key is explained in the documentation of its recipe."])


def _reproduce_note(chain: Chain) -> str:
    version = chain.last.record.versions.get("hfstack")
    install = f"`pip install hfstack=={version}`" if version else "hfstack"
    return (
        f"With {install}, in an empty folder, the runs one after the other. Paths are written relative to it; the same "
        "seed, versions, hardware and number of processes give the same weights."
    )


def _plain(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, dict) and "path" in item for item in value):
        return ", ".join(str(item["path"]) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _as_text(prompt: Any) -> str:
    """A prompt as text; of a conversation the contents of its turns."""
    if isinstance(prompt, list):
        return "\n".join(str(turn.get("content", "")) for turn in prompt if isinstance(turn, dict))
    return str(prompt)


def _sample(prompt: str, completion: str) -> str:
    """A prompt and its completion, in a fence that neither of them can close."""
    longest = max(map(len, re.findall(r"`{3,}", prompt + completion)), default=2)
    fence = "`" * (longest + 1)

    def fenced(text: str) -> str:
        shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} ..."
        return f"{fence}text\n{shown}\n{fence}"

    return f"**Prompt**\n\n{fenced(prompt)}\n\n**Model**\n\n{fenced(completion or '(nothing)')}"
