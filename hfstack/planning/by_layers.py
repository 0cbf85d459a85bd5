"""Count a deep model's memory from two shallow ones with layers like its own.

Each moment of a training step holds a sum that is linear in the number of layers, but the highest
moment may be another one in a deep model than in a shallow one: at the end of the forward pass
activations are held, at the end of the backward pass gradients. So the peak of each phase is scaled
by itself, and the highest phase is taken afterwards.
"""

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

SHALLOW = (3, 4)
"""Layers of the two models: a first one, a last one and at least one between them."""

Phase = dict[str, int]
"""Bytes at the highest moment of a phase, by what they are for."""


def keep_first_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig | None:
    """Return the config with so many layers, or None where its layers may differ.

    A setting of each layer, such as `layer_types`, is a list: equal entries are cut, others would
    not be the same mixture in a shallow model.
    """
    own = getattr(config, "num_hidden_layers", None)
    # fewer are traced as fast as the two shallow models
    if config.is_encoder_decoder or not isinstance(own, int) or own <= sum(SHALLOW):
        return None

    shallow: Any = copy.deepcopy(config)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == own:
            if any(entry != value[0] for entry in value):
                return None
            setattr(shallow, name, value[:layers])
    shallow.num_hidden_layers = layers
    return shallow


def find_layers(model: PreTrainedModel) -> nn.ModuleList | None:
    """Return the model's layers where all are alike in class and shapes, or None."""
    wanted = model.config.num_hidden_layers
    lists = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == wanted
    ]
    if len(lists) != 1:
        return None
    shapes = [
        (type(layer), [(name, weight.shape) for name, weight in layer.named_parameters()])
        for layer in lists[0]
    ]
    return lists[0] if all(shape == shapes[0] for shape in shapes) else None


def scale(fewer: list[Phase], more: list[Phase], layers: int) -> list[Phase]:
    """Return the phases of a model with so many layers, scaled from shallow ones.

    Args:
        fewer: of the model with `SHALLOW[0]` layers.
        more: of the one with `SHALLOW[1]`, the same phases.
        layers: of the deep model.
    """
    steps = (layers - SHALLOW[0]) // (SHALLOW[1] - SHALLOW[0])
    return [
        {
            kind: low.get(kind, 0) + steps * (high.get(kind, 0) - low.get(kind, 0))
            for kind in {**low, **high}
        }
        for low, high in zip(fewer, more, strict=True)
    ]
