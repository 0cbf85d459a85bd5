"""Make the YAML block of a card, which the Hub's search and widgets read."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hfstack.drawing.measures import REINFORCED
from hfstack.errors import ConfigError
from hfstack.publishing.card.author import AuthorFacts
from hfstack.publishing.card.metrics import count_most_telling, list_results, model_index_results
from hfstack.publishing.files import SENTENCE_TRANSFORMERS, PublishedKind
from hfstack.publishing.lineage import Chain

_MODEL_INDEX_RESULTS = 10


def make_metadata(
    chain: Chain,
    kind: PublishedKind,
    author: AuthorFacts,
    *,
    name: str,
    base: str | None,
    splits: Sequence[str],
) -> str:
    """Return the YAML of a model or a dataset.

    Args:
        base: the Hub id of the model that it started from.
        splits: of a dataset, the names of its files without .jsonl.
    """
    recipes = {link.record.recipe for link in chain.links}
    tags = ["hfstack", chain.last.record.recipe]
    tags += ["rlhf"] if REINFORCED & recipes else []
    tags += ["reward-model"] if kind.name == "reward" else []
    stated: dict[str, Any] = {"license": author.licence, "language": list(author.language) or None}

    if kind.repo_type == "dataset":
        configs = _dataset_configs(splits)
        data = DatasetCardData(pretty_name=name, tags=tags, configs=configs, **stated)
        return data.to_yaml()

    results = list_results(chain)
    telling = results[: min(count_most_telling(results), _MODEL_INDEX_RESULTS)]
    library = "sentence-transformers" if kind.name in SENTENCE_TRANSFORMERS else "transformers"
    data = ModelCardData(
        library_name="peft" if kind.adapter else library,
        pipeline_tag=kind.pipeline_tag,
        base_model=base,
        datasets=_hub_datasets(chain) or None,
        tags=tags,
        model_name=name,
        eval_results=model_index_results(telling, kind) or None,
        **stated,
    )
    return data.to_yaml()


def check_card(text: str, *, dataset: bool = False) -> int:
    """Read a card back as the Hub does, and return the number of results in its index.

    Raises:
        ConfigError: the metadata is not valid.
    """
    try:
        data = (DatasetCard if dataset else ModelCard)(text).data
        for name in ("base_model", "datasets"):
            value = data.get(name)
            for repo in value if isinstance(value, list) else [value] if value else []:
                validate_repo_id(repo)
    except (ValueError, HFValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"the card's metadata is not valid: {reason}") from None
    return len(data.get("eval_results") or [])


def _dataset_configs(splits: Sequence[str]) -> list[dict[str, Any]]:
    """Return how the Hub loads the files of a dataset.

    `train` and `eval` are splits of the default configuration; others have columns of their own, so
    each is a configuration.
    """
    files = [{"split": split, "path": f"{split}.jsonl"} for split in splits]
    default = [file for file in files if file["split"] in ("train", "eval")]
    configs = [{"config_name": "default", "data_files": default}] if default else []
    others = (file for file in files if file not in default)
    return configs + [{"config_name": file["split"], "data_files": [file]} for file in others]


def _hub_datasets(chain: Chain) -> list[str]:
    """Return the ids of the Hub's datasets that the chain read, each once."""
    entries = (entry for link in chain.links for entry in link.record.data)
    paths = (str(entry["path"]) for entry in entries if not entry.get("files"))
    return list(dict.fromkeys(path for path in paths if path.count("/") <= 1))
