"""Switch dropout off for good, whatever a family calls it, and prove that it is.

Dropout hides in modules of torch, and in numbers that a model hands to a function while it trains:
`attention_dropout`, `activation_dropout`, `layerdrop`, `residual_dropout`, `attn_pdrop`, and the
noise that some mixtures add to what their routers read, `router_jitter_noise` ...
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from hfstack.errors import ConfigError
from hfstack.models.evaluation_mode import evaluation_mode
from hfstack.models.probes import ProbeResult, logits_of, random_ids, relative_difference, tolerance

_MODULES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_PARTS_OF_NAMES = ("drop", "jitter")


def turn_off_dropout(model: nn.Module) -> None:
    """Set every dropout to 0: modules, and numbers of others that are named so."""
    for module in model.modules():
        if isinstance(module, _MODULES):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            named = any(part in name.lower() for part in _PARTS_OF_NAMES)
            if named and isinstance(value, float):
                setattr(module, name, 0.0)


def training_noise(model: PreTrainedModel) -> ProbeResult:
    """Measure how much logits in training mode differ from those in evaluation mode."""
    ids = random_ids(model, 2, 12)  # (B, T)
    with evaluation_mode(model):
        expected = logits_of(model, input_ids=ids)
        model.train()
        found = logits_of(model, input_ids=ids)
    return ProbeResult(relative_difference(expected, found), tolerance(model))


def require_no_noise(model: PreTrainedModel, option: str) -> None:
    """Refuse a model whose training mode differs from evaluation without dropout.

    Args:
        option: that switched dropout off, for the message.

    Raises:
        ConfigError: something random is left in training mode, or the model refuses the rows.
    """
    try:
        with torch.random.fork_rng(enabled=True, devices=[]):
            figure = training_noise(model)
    # some families train on rows of one length alone
    except ValueError as error:
        raise ConfigError(
            f"{type(model).__name__} cannot train on rows of any length, as PPO asks: "
            f"{' '.join(str(error).split())}"
        ) from error
    if not figure.holds:
        raise ConfigError(
            f"{option}: the logits of {type(model).__name__} still change by {figure.value:.2g} of "
            "the largest in training mode, by noise that is no dropout; PPO's ratios would be "
            "wrong: use another model"
        )
