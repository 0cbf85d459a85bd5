"""Load models that embed texts or score pairs, by sentence-transformers.

A base may be a folder of sentence-transformers, or any encoder or causal model, whose tokens are
then pooled to one vector: by their mean, or of a causal model by the last one, which alone has read
all of them. Nothing runs code of a repository, and only safetensors weights are read.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from peft import get_peft_model
from transformers import PreTrainedModel
from transformers.utils import cached_file
from trl import ModelConfig

from hfstack.disk import read_json_file
from hfstack.errors import CheckpointError, ConfigError
from hfstack.logs import get_logger
from hfstack.models.adapter_names import adapter_for
from hfstack.models.contents import (
    MODULES_FILE,
    Contents,
    ModelKind,
    identify_model,
    not_found,
    refuse_lost_layers,
    require_trained,
)
from hfstack.models.heads import padding_id
from hfstack.models.loading import check_vocabulary, require_model_name
from hfstack.tasks.retrieval.libraries import import_library
from hfstack.tasks.shared.task_models import check_length

logger = get_logger(__name__)

RetrieverKind = Literal["bi_encoder", "cross_encoder"]
Pooling = Literal["auto", "mean", "cls", "lasttoken"]

EMBEDDER: ModelKind = "embedding model"
RERANKER: ModelKind = "reranker"

# heads that sentence-transformers leaves off, so that their bodies embed
_BODIES: tuple[ModelKind, ...] = (
    EMBEDDER,
    "model without a head",
    "masked language model",
    "causal language model",
)
_OWN_MODULES = "sentence_transformers."


def load_base(
    args: ModelConfig,
    kind: RetrieverKind,
    *,
    pooling: Pooling,
    max_length: int | None,
    prompts: Mapping[str, str],
) -> Any:
    """Return a model to be trained, of the kind that is asked for.

    Arguments and errors are those of `load_embedder` and `load_reranker`.

    Raises:
        ConfigError: a cross-encoder is to have pooling or prompts.
    """
    if kind == "bi_encoder":
        return load_embedder(args, pooling=pooling, max_length=max_length, prompts=prompts)
    if pooling != "auto" or prompts:
        raise ConfigError(
            "--pooling, --query_prompt and --passage_prompt are for a bi_encoder: a cross_encoder "
            "reads both texts at once"
        )
    return load_reranker(args, max_length=max_length, new_head=True)


def load_embedder(
    args: ModelConfig,
    *,
    pooling: Pooling = "auto",
    max_length: int | None = None,
    prompts: Mapping[str, str] | None = None,
) -> Any:
    """Return a SentenceTransformer on the CPU, in evaluation mode.

    Args:
        pooling: of a base that has none; "auto" is the mean, of a causal model the last token.
        max_length: tokens of a text that are read; None for what the model is set to, or at most
            512.
        prompts: put in front of a "query" and a "document"; those of the model by default.

    Raises:
        ConfigError: a pooling that is not the model's own, a length beyond its context, or an
            adapter.
        CheckpointError: there is no such model, it is of another kind, or its modules are code.
        MissingExtraError: sentence-transformers is not installed.
    """
    library = import_library("sentence_transformers")
    name = require_model_name(args)
    found = _check_base(args, _BODIES)

    is_embedder = found.kind == EMBEDDER
    if is_embedder and pooling != "auto":
        raise ConfigError(f"--pooling {pooling}: {name} has pooling of its own: leave it out")
    how: dict[str, Any] = {"device": "cpu", "trust_remote_code": False}
    with _checking_weights(found, name, new_head=False):
        try:
            if is_embedder:
                how |= {"revision": args.model_revision, "model_kwargs": _model_settings(args)}
                model = library.SentenceTransformer(name, **how)
            else:
                new = _new_modules(args, found, pooling)
                model = library.SentenceTransformer(modules=new, **how)
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(not_found("model that embeds texts", name, error)) from error

    _set_up(model, name, max_length)
    if prompts:
        model.prompts |= prompts
    return model.eval()


def load_reranker(
    args: ModelConfig, *, max_length: int | None = None, new_head: bool = False
) -> Any:
    """Return a CrossEncoder of one output on the CPU, in evaluation mode.

    Args:
        new_head: the model will be trained, so a base without a head gets a new one.
        max_length: tokens of a pair that are read; None for what the model is set to, or at most
            512.

    Raises:
        ConfigError: a length beyond the context, or an adapter.
        CheckpointError: there is no such model, it is no encoder, or it has no trained head.
        MissingExtraError: sentence-transformers is not installed.
    """
    library = import_library("sentence_transformers")
    name = require_model_name(args)
    bodies: list[ModelKind] = []
    if new_head:
        bodies = [kind for kind in _BODIES if kind != "causal language model"]
    found = _check_base(args, (RERANKER, *bodies))
    with _checking_weights(found, name, new_head=new_head):
        try:
            model = library.CrossEncoder(
                name,
                num_labels=1,
                device="cpu",
                revision=args.model_revision,
                trust_remote_code=False,
                model_kwargs=_model_settings(args),
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(not_found("model that scores pairs", name, error)) from error

    _set_up(model, name, max_length)
    return model.eval()


def load_retriever(args: ModelConfig, *, max_length: int | None = None) -> Any:
    """Return a finished model of either kind, as plain sentence-transformers loads it.

    Arguments and errors are those of `load_embedder` and `load_reranker`.
    """
    name = require_model_name(args)
    found = identify_model(name, args.model_revision)
    if found.kind == EMBEDDER:
        return load_embedder(args, max_length=max_length)
    if found.kind == RERANKER:
        return load_reranker(args, max_length=max_length)
    raise CheckpointError(
        f"{name} is {found}, and neither embeds texts nor scores pairs: train it with embed"
    )


def add_adapter(args: ModelConfig, model: Any, kind: RetrieverKind) -> None:
    """Put the LoRA adapter of --use_peft on a model's transformer, in place.

    Without --use_peft nothing changes. The head of a cross-encoder is trained and saved with it.

    Raises:
        ConfigError: a name fits no module, or PEFT cannot put the adapter there.
    """
    if not args.use_peft:
        return
    inner = model.transformers_model
    task_type = "SEQ_CLS" if kind == "cross_encoder" else "FEATURE_EXTRACTION"
    heads = ("classifier", "score", "pooler") if kind == "cross_encoder" else ()
    modules = {place.rpartition(".")[2] for place, _ in inner.named_modules()}
    saved = [head for head in heads if head in modules]
    saved = sorted({*(args.lora_modules_to_save or []), *saved})
    named = replace(args, lora_task_type=task_type, lora_modules_to_save=saved or None)
    config = adapter_for(named, inner)
    assert config is not None, "--use_peft is set"
    model[0].model = get_peft_model(inner, config)


def _check_base(args: ModelConfig, wanted: Sequence[ModelKind]) -> Contents:
    """Return what a base is, once it can be trained to embed or to score.

    Raises:
        ConfigError: it is an architecture or an adapter, or quantised weights are asked for.
        CheckpointError: it is of another kind, or its modules are code of its own.
    """
    name = require_model_name(args)
    if name.endswith(".json"):
        raise ConfigError(
            f"--model_name_or_path {name} is an architecture, without weights: train it first, "
            "with pretrain_mlm or pretrain_clm"
        )
    if args.load_in_4bit or args.load_in_8bit:
        raise ConfigError("--load_in_4bit and --load_in_8bit: embed reads unquantised weights only")

    found = identify_model(name, args.model_revision)
    if found.adapter:
        raise ConfigError(f"{name} is {found}: merge it first (hfstack run merge_checkpoint)")
    if found.kind not in wanted:
        raise CheckpointError(
            f"{name} is {found}, but needed is: {' or '.join(dict.fromkeys(wanted))}"
        )
    if found.kind in (EMBEDDER, RERANKER):
        refuse_foreign_modules(name, args.model_revision)
    return found


def refuse_foreign_modules(name: str, revision: str | None = None) -> None:
    """Refuse a folder whose modules are of other packages, or saved as pickles.

    sentence-transformers imports the class that modules.json names.

    Raises:
        CheckpointError: naming the first such module.
    """
    file = cached_file(
        name, MODULES_FILE, revision=revision, _raise_exceptions_for_missing_entries=False
    )
    if file is None:  # a reranker may have none
        return
    try:
        modules = read_json_file(Path(file))
        types = [(str(module["type"]), str(module["path"])) for module in modules]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{name}/{MODULES_FILE} cannot be read: {error}") from None

    for kind, path in types:
        if not kind.startswith(_OWN_MODULES):
            raise CheckpointError(
                f"{name}/{MODULES_FILE} names {kind}, which is code of its own: only modules of "
                "sentence-transformers are loaded"
            )
        if path and list((Path(file).parent / path).glob("*.bin")):
            raise CheckpointError(
                f"{name}/{path} has pickled weights: keep weights as safetensors only"
            )


@contextmanager
def _checking_weights(found: Contents, name: str, *, new_head: bool) -> Iterator[None]:
    """Refuse weights that lack layers, where sentence-transformers loads them.

    It drops what transformers reports of its loading, so the report is asked for underneath.

    Args:
        found: what the model says that it is.
        name: of the model.
        new_head: a head that the weights lack may be newly initialised.
    """
    upstream = PreTrainedModel.__dict__["from_pretrained"]
    loaded: list[tuple[Any, set[str]]] = []

    def load(cls: Any, *args: Any, **settings: Any) -> Any:
        model, report = upstream.__func__(cls, *args, **settings | {"output_loading_info": True})
        # no vector and no score is read from a pooler that the weights lack
        loaded.append((model, {key for key in report["missing_keys"] if "pooler" not in key}))
        return model

    try:
        PreTrainedModel.from_pretrained = classmethod(load)  # pyright: ignore
        yield
    finally:
        PreTrainedModel.from_pretrained = upstream

    for model, missing in loaded:
        refuse_lost_layers(model, missing, name)
        if line := require_trained(missing, found, name, new_head=new_head):
            logger.info("%s", line)


def _model_settings(args: ModelConfig) -> dict[str, Any]:
    """Return how transformers loads the weights."""
    return {
        "use_safetensors": True,
        "dtype": args.dtype,
        "attn_implementation": args.attn_implementation,
    }


def _new_modules(args: ModelConfig, found: Contents, pooling: Pooling) -> list[Any]:
    """Return a transformer, its pooling and a normalisation to length 1."""
    modules: Any = import_library("sentence_transformers.base.modules")
    pools: Any = import_library("sentence_transformers.sentence_transformer.modules")
    shared = {"revision": args.model_revision, "trust_remote_code": False}
    transformer = modules.Transformer(
        require_model_name(args),
        model_kwargs=_model_settings(args) | shared,
        processor_kwargs=dict(shared),
        config_kwargs=dict(shared),
    )

    is_causal = found.kind == "causal language model"
    mode = ("lasttoken" if is_causal else "mean") if pooling == "auto" else pooling
    if is_causal and mode == "cls":
        raise ConfigError("--pooling cls: the first token of a causal model has read nothing else")
    logger.info("%s is %s: its tokens are pooled by %s", args.model_name_or_path, found, mode)
    size = transformer.get_embedding_dimension()
    return [transformer, pools.Pooling(size, pooling_mode=mode), modules.Normalize()]


def _set_up(model: Any, name: str, max_length: int | None) -> None:
    """Give a model a pad token and a length, and compare its vocabulary."""
    tokenizer = model.tokenizer
    padding_id(tokenizer)
    check_vocabulary(cast(Any, model.transformers_model), tokenizer, name)

    usual = model.max_seq_length or 512
    usual = usual if usual < 10**9 else 512  # what a tokenizer without a limit says
    model.max_seq_length = check_length(max_length, model.config, tokenizer, usual=min(usual, 512))
