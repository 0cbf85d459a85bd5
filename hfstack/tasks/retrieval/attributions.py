"""Explain which words of a query and a passage match, by integrated gradients.

The score of a pair is attributed to the tokens of one text while the other stays as it is: first to
those of the passage, then to those of the query. What a text of neutral tokens scores is what they
add up from.

Legend: S points of the path, T tokens, H hidden size.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from trl import ModelConfig

from hfstack.errors import ConfigError, DataError
from hfstack.models.contents import ModelKind
from hfstack.tasks.classification.attributions import (
    Explanation,
    explain_text,
    integrate_gradients,
    neutral_id,
)
from hfstack.tasks.classification.model import ClassifierInfo
from hfstack.tasks.retrieval.model import EMBEDDER, load_embedder, load_reranker

MATCHED = ("query", "passage")
"""Columns of rows to explain."""
MATCHERS: tuple[ModelKind, ...] = (EMBEDDER, "reranker")

Explain = Callable[..., list[Explanation]]
"""Takes a query, a passage, `steps` and `tolerance`; returns what is shown of the pair."""


def load_match_explainer(args: ModelConfig, kind: ModelKind) -> Explain:
    """Load an embedding model or a reranker, and return what explains a pair.

    Raises:
        CheckpointError: there is no such model.
        MissingExtraError: sentence-transformers or captum is not installed.
    """
    device = Accelerator().device
    if kind == EMBEDDER:
        model = load_embedder(args).to(device)

        def explain(query: str, passage: str, **settings: Any) -> list[Explanation]:
            return explain_match(model, query, passage, **settings)

        return explain

    reranker = load_reranker(args).to(device)
    info = ClassifierInfo("regression", [])

    def explain_score(query: str, passage: str, **settings: Any) -> list[Explanation]:
        length = {"max_length": reranker.max_seq_length}
        classifier, tokenizer = reranker.transformers_model, reranker.tokenizer
        texts = (query, passage)
        return [explain_text(classifier, tokenizer, info, texts, **length, **settings)]

    return explain_score


def explain_match(
    model: Any, query: str, passage: str, *, steps: int, tolerance: float
) -> list[Explanation]:
    """Attribute the cosine of a query and a passage to the tokens of each.

    Args:
        model: a SentenceTransformer.
        steps, tolerance: of `integrate_gradients`.

    Raises:
        DataError: a text is empty.
        MissingExtraError: captum is not installed.
    """
    if not query.strip() or not passage.strip():
        raise DataError("nothing to explain: the query or the passage is empty")
    sides = (
        ("words of the passage", passage, "document", query, "query"),
        ("words of the query", query, "query", passage, "document"),
    )

    found = []
    for label, text, role, other, other_role in sides:
        inputs, where, special = _encode(model, text, role)
        target = _embed_whole(model, other, other_role)  # (H,)
        score = _cosine_with(model, target, inputs["attention_mask"])

        embed = model.transformers_model.get_input_embeddings()
        ids = inputs["input_ids"]  # (1, T)
        neutral = torch.where(special, ids, neutral_id(model.tokenizer))
        with torch.no_grad():
            whole, empty = embed(ids).detach(), embed(neutral).detach()  # (1, T, H)

        each = integrate_gradients(score, whole, empty, steps=steps, tolerance=tolerance)
        places = [(i, place) for i, place in enumerate(where) if not special[0, i]]
        found.append(each.explain((text,), places, label=label, probability=None))
    return found


def _encode(
    model: Any, text: str, role: str
) -> tuple[dict[str, torch.Tensor], list[tuple[int, int, int]], torch.Tensor]:
    """Return inputs (1, T), each token's place in the text, and what stays, (1, T).

    Special tokens stay as they are, and so does the prompt in front.
    """
    prompt = model.prompts.get(role) or ""
    encoded = model.tokenizer(
        prompt + text,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        truncation=True,
        max_length=model.max_seq_length,
        verbose=False,
    )
    device = model.device
    inputs = {
        name: torch.tensor([encoded[name]], device=device)
        for name in ("input_ids", "attention_mask")
    }

    shift = len(prompt)
    where = [(0, first - shift, last - shift) for first, last in encoded["offset_mapping"]]
    stays = [
        bool(special) or last <= 0
        for special, (_, _, last) in zip(encoded["special_tokens_mask"], where, strict=True)
    ]
    return inputs, where, torch.tensor([stays], device=device)


def _embed_whole(model: Any, text: str, role: str) -> torch.Tensor:
    """Return the vector of a text, (H,)."""
    encode = model.encode_query if role == "query" else model.encode_document
    vector = encode(text, normalize_embeddings=True, show_progress_bar=False)
    return torch.as_tensor(vector, device=model.device)


def _cosine_with(
    model: Any, target: torch.Tensor, mask: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from embeddings (S, T, H) to cosines with a vector (S,)."""

    def score(embedded: torch.Tensor) -> torch.Tensor:
        masks = mask.expand(len(embedded), -1)  # (S, T)
        hidden = model.transformers_model(inputs_embeds=embedded, attention_mask=masks)[0]
        features = {"token_embeddings": hidden, "attention_mask": masks}
        for module in list(model)[1:]:
            features = module(features)
        vectors = features["sentence_embedding"].float()
        return torch.nn.functional.normalize(vectors, dim=-1) @ target.float()

    return score


def pairs_to_match(
    queries: Sequence[str], passages: Sequence[str], rows: Iterable[Any]
) -> Iterator[tuple[str, str]]:
    """Yield each query with its passage: those that are given, then those of rows.

    Raises:
        ConfigError: a query is given without a passage.
        DataError: a row lacks one of them, or it is no text.
    """
    if len(queries) != len(passages):
        raise ConfigError("this model compares texts in pairs: --texts QUERY --answers PASSAGE")
    yield from zip(queries, passages, strict=True)

    for row in rows:
        for name in MATCHED:
            if not isinstance(row.get(name), str):
                raise DataError(
                    f"explain needs rows with {' and '.join(MATCHED)}; found: {', '.join(row)}"
                )
        yield row["query"], row["passage"]
