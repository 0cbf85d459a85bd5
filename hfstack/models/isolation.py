"""Keep the documents of a packed row apart, in a way that a probe has proved.

Most decoders of transformers keep them apart by `position_ids` that restart at 0 in each document,
where no attention mask is passed; hfstack's recurrent models reset their state there. Others (OPT,
MPT, gpt_oss) read positions for something else, but take a mask of their own (B, 1, T, T): these
get a block-diagonal one, made from the positions on the device. Where neither holds, as in a state
space that runs on (Mamba), or where nothing can be masked, packing is refused.

Legend: B rows, T tokens of a row.
"""

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfstack.errors import ConfigError
from hfstack.logs import get_logger
from hfstack.models.cache import CACHE_NAME
from hfstack.models.output_head import body_of, without_adapter
from hfstack.models.probes import ProbeResult, documents_apart, embedding_rows

logger = get_logger(__name__)

_WINDOWED = "sliding_attention"  # transformers' name of layers that see the last tokens alone


def isolate_documents(model: PreTrainedModel, *, block_size: int) -> None:
    """Prepare a model for blocks of documents that may not read each other.

    Raises:
        ConfigError: they would in this model, or with its attention: flash attention reads
            positions in batches of one sequence only.
    """
    implementation = str(model.config._attn_implementation)
    if "flash" in implementation:
        raise ConfigError(
            f"--isolate_documents does not hold with --attn_implementation {implementation}; "
            "use sdpa, or leave it out"
        )
    keep_documents_apart(model, "--isolate_documents: leave it out", longest=block_size)


def document_mask(positions: Tensor) -> Tensor:
    """Return (B, 1, T, T): may a token read another, of its document and not later?"""
    document = (positions == 0).cumsum(dim=1)  # (B, T)
    same = document[:, :, None] == document[:, None, :]  # (B, T, T)
    return torch.ones_like(same).tril().logical_and(same)[:, None]


def within(window: int, positions: Tensor) -> Tensor:
    """Return (T, T): whether a token is among the last `window` ones of another."""
    place = torch.arange(positions.shape[1], device=positions.device)  # (T,)
    return place[:, None] - place[None, :] < window


@dataclass(frozen=True)
class BlockDiagonalMask:
    """The mask between the documents of packed rows, made from their positions.

    Args:
        dtype: of the weights; the mask is added to the scores of attention.
        windows: for each kind of layer how many tokens it sees, None for all of them; a mask is
            made for each kind. None where all layers share one mask.
    """

    dtype: torch.dtype
    windows: dict[str, int | None] | None = None

    def __call__(self, positions: Tensor) -> Any:
        """Return the mask (B, 1, T, T) of positions (B, T), or one a kind of layer."""
        kept = document_mask(positions)
        if self.windows is None:
            return self._additive(kept)
        return {
            kind: self._additive(kept if window is None else kept & within(window, positions))
            for kind, window in self.windows.items()
        }

    def _additive(self, kept: Tensor) -> Tensor:
        lowest = torch.finfo(self.dtype).min
        mask = torch.zeros(kept.shape, dtype=self.dtype, device=kept.device)
        return mask.masked_fill(~kept, lowest)


def keep_documents_apart(model: PreTrainedModel, option: str, *, longest: int) -> str:
    """Prove that packed documents are apart, and return how: `positions` or `mask`.

    Where a mask does it, the model makes it from the positions of each packed batch from now on.

    Args:
        model: not placed by a Trainer yet. One in shards cannot be probed.
        option: the user's, and what to do instead; the message begins with it.
        longest: tokens of a packed row.

    Raises:
        ConfigError: documents read each other in this model.
    """
    if embedding_rows(model) == 0:
        logger.warning("%s is not checked on this model: its weights are in shards", option)
        return "positions"

    figure = _measure_apart(model)
    if figure is not None and figure.holds:
        return "positions"

    inner, window = without_adapter(model), _smallest_window(model, longest)
    mask = BlockDiagonalMask(model.dtype, _windows(model, window))
    # behind the window, so that a mask without one would show
    options = {} if window is None else {"tokens": window + 8}

    # below the head, so that a loss which never makes all logits runs through it too; then above
    # it as well, for heads that call a part of their body (OPT)
    undo: list[Callable[[], None]] = []
    for module in dict.fromkeys((body_of(inner), inner)):
        undo.append(_mask_packed_rows(module, mask))
        masked = _measure_apart(model, **options)
        if masked is not None and masked.holds:
            logger.info("packed documents are kept apart by a block-diagonal mask")
            return "mask"

    for take_off in reversed(undo):
        take_off()
    change = "" if figure is None else f" (its logits change by {figure.value:.2g} of the largest)"
    raise ConfigError(
        f"{option}; in a packed row of {type(model).__name__} a document depends on the one before "
        f"it{change}, and neither restarting positions nor a mask prevent it"
    )


def _mask_packed_rows(model: Any, mask: BlockDiagonalMask) -> Callable[[], None]:
    """Add the mask to a forward pass that gets positions alone; return what undoes it."""
    forward, own = model.forward, model.__dict__.get("forward")

    # what calls it may read the signature: the Trainer, to know which columns to keep
    @functools.wraps(type(model).forward)
    def masked_forward(self: Any, *args: Any, **inputs: Any) -> Any:
        positions = inputs.get("position_ids")
        given = [inputs.get("attention_mask"), inputs.get(CACHE_NAME)]
        if positions is not None and given == [None, None]:
            inputs |= {"attention_mask": mask(positions)}
        return forward(*args, **inputs)

    model.forward = types.MethodType(masked_forward, model)

    def take_off() -> None:
        del model.forward
        if own is not None:
            model.forward = own

    return take_off


def _measure_apart(model: PreTrainedModel, **options: Any) -> ProbeResult | None:
    """Return the probe's figure, or None where the model does not take such inputs."""
    try:
        return documents_apart(model, **options)
    except torch.OutOfMemoryError:
        raise
    # a model that knows no such input fails in its own way, of which there are many
    except Exception as error:
        logger.debug("the probe of packed documents ended in %r", error)
        return None


def _smallest_window(model: PreTrainedModel, longest: int) -> int | None:
    """Return how many tokens windowed attention sees, where a packed row is longer."""
    config: Any = model.config.get_text_config()
    names = ("sliding_window", "attention_window_size", "attention_chunk_size", "window_size")
    windows = [getattr(config, name, None) for name in names]
    shorter = [value for value in windows if isinstance(value, int) and 0 < value < longest]
    return min(shorter) if shorter else None


def _windows(model: PreTrainedModel, window: int | None) -> dict[str, int | None] | None:
    """Return how far each kind of layer sees; None where all see the whole row."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None)
    if window is None or not kinds or _WINDOWED not in kinds:
        return None
    return {kind: window if kind == _WINDOWED else None for kind in set(kinds)}
