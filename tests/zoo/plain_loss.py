"""Hold a recipe's first loss against plain transformers, document by document.

The first batch that a Trainer trains on is kept. Each document in it, found by the positions of a
packed row or by the attention mask of a padded one, is then read alone, without padding, by the
model as transformers loads it. So the loss that a recipe trains on is compared with one that knows
of no packing, no padding and no fused head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from hfstack.models.dropout import turn_off_dropout
from hfstack.tokens.fast_encoding import document_start_id

IGNORED = -100


@dataclass
class FirstStep:
    """The first batch of a training, and its loss with dropout off."""

    batch: dict[str, Tensor] = field(default_factory=dict)
    loss: float | None = None
    adds_router_loss: bool = False


@contextmanager
def first_step() -> Iterator[FirstStep]:
    """Keep the first step of every Trainer that trains in the block."""
    seen = FirstStep()
    stock = Trainer.training_step

    def training_step(self: Trainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if seen.loss is not None:
            return stock(self, model, inputs, *args, **kwargs)
        turn_off_dropout(model)
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        seen.batch = {name: value.clone() for name, value in tensors.items()}
        seen.adds_router_loss = bool(getattr(self, "aux_loss_enabled", False))
        loss = stock(self, model, inputs, *args, **kwargs)
        seen.loss = float(loss)
        return loss

    Trainer.training_step = training_step
    try:
        yield seen
    finally:
        Trainer.training_step = stock


def plain_loss(folder: Path, batch: dict[str, Tensor]) -> float:
    """Return the mean loss of a batch's documents, each read alone."""
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    total, count = 0.0, 0
    for ids, targets in documents(batch):
        if not (targets != IGNORED).any():
            continue
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0].double()  # (T, V)
            logits = logits[: len(targets)]
        total += float(cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"))
        count += int((targets != IGNORED).sum())
    return total / count


def plain_text_loss(folder: Path, texts: list[str]) -> float:
    """Return the mean loss of texts, each read alone behind the token that starts a document."""
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    start = document_start_id(tokenizer)
    total, count = 0.0, 0
    for text in texts:
        ids = [start, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]  # (T, V)
        total += float(cross_entropy(logits.double(), torch.tensor(ids[1:]), reduction="sum"))
        count += len(ids) - 1
    return total / count


def plain_odds_loss(folder: Path, batch: dict[str, Tensor], *, weight: float) -> float:
    """Return ORPO's loss of pairs whose answers are each read alone (Hong et al. 2024, eq. 6-7).

    The likelihood of an answer is the mean over its tokens; that of the chosen ones is learned with
    their prompts.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    nll, tokens, log_odds = 0.0, 0, []
    for row in range(len(batch["chosen_input_ids"])):
        odds = []
        for side in ("chosen", "rejected"):
            kept = batch[f"{side}_attention_mask"][row].bool()
            ids, labels = batch[f"{side}_input_ids"][row][kept], batch[f"{side}_labels"][row][kept]
            with torch.no_grad():
                logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].double()
            losses = cross_entropy(logits, ids[1:], reduction="none")  # (T - 1,)
            if side == "chosen":
                nll, tokens = nll + float(losses.sum()), tokens + len(losses)
            mean = -losses[labels[1:] != IGNORED].mean()
            odds.append(mean - torch.log1p(-mean.exp()))
        log_odds.append(odds[0] - odds[1])
    return nll / tokens - weight * float(logsigmoid(torch.stack(log_odds)).mean())


def documents(batch: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield token ids of each document of a batch, without padding, and what follows each token.

    The last token of a document in a block is followed by the first one of the next document.
    """
    ids, labels = batch["input_ids"], batch["labels"]
    for row in range(len(ids)):
        if "position_ids" in batch:
            starts = (batch["position_ids"][row] == 0).nonzero()[:, 0].tolist()
            for start, end in zip(starts, [*starts[1:], ids.shape[1]], strict=True):
                yield ids[row, start:end], labels[row, start + 1 : end + 1]
        else:
            mask = batch.get("attention_mask", torch.ones_like(ids))[row].bool()
            yield ids[row][mask], labels[row][mask][1:]
