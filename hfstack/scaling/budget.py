"""Plan the model, data and steps that a budget of compute is best spent on.

A fitted law says so before anything is spent.

Legend: N parameters, D tokens, C FLOPs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hfstack.errors import ConfigError
from hfstack.intervals import Interval, expanded_percentiles
from hfstack.scaling.ladder import (
    LEAST_STEPS,
    Costs,
    Count,
    Machine,
    Rung,
    config_of_size,
    plan_rung,
)
from hfstack.scaling.parametric import Law

# The law of Hoffmann et al. (2022) refitted to their own points by Besiroglu et al. (2024,
# arXiv:2404.10102, table 1): nats per token of MassiveText with a vocabulary of 32,000.
CHINCHILLA = Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
_SECONDS_PER_HOUR = 3600.0


@dataclass
class BudgetArgs:
    """A budget of compute, and the law that says what it buys."""

    budget_flops: float | None = None
    """FLOPs to spend; or give --device_hours or --money."""
    device_hours: float | None = None
    """Hours of one device, summed over devices."""
    money: float | None = None
    """In any currency."""
    price_per_device_hour: float | None = None
    """What one device costs for an hour, in the same currency; with --recipe the plan says what the
    whole run costs."""
    fit: str | None = None
    """Finished scaling_fit run whose law is used; Chinchilla's by default."""
    architecture: str = "llama-125m.json"
    """config.json whose width and depth are changed; its vocabulary is kept."""
    block_size: int = 1024
    """Tokens of a sequence."""
    parameters: float | None = None
    """Size to take in place of the law's, to see what another one would give."""


@dataclass(frozen=True)
class BudgetPlan:
    """What a budget buys."""

    flops: float
    """C that was given."""
    rung: Rung
    """Config, batch, steps and learning rate; its tokens and FLOPs are what whole steps come to."""
    wished_parameters: float
    """N of the law, before the nearest shape is taken."""
    loss: float
    """Predicted by the law, in its unit."""
    loss_interval: Interval | None
    """95 % over the bootstrap draws of the law; None without draws."""
    parameters_interval: Interval | None
    notes: tuple[str, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """Return the plan as numbers."""
        rung = self.rung
        numbers = {
            "flops": self.flops,
            "parameters": rung.costs.parameters,
            "tokens": rung.tokens,
            "steps": rung.steps,
            "tokens_per_step": rung.sequences_per_step * rung.block_size,
            "learning_rate": rung.learning_rate,
            "predicted_loss": self.loss,
        }

        intervals = {
            "predicted_loss": self.loss_interval,
            "parameters": self.parameters_interval,
        }
        for name, interval in intervals.items():
            if interval is not None:
                numbers |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        return numbers


def budget_flops(budget: BudgetArgs, *, peak_flops_per_s: float, utilization: float) -> float:
    """Return the FLOPs of a budget that is given in one of three ways.

    Args:
        budget: FLOPs, hours of a device, or money with a price.
        peak_flops_per_s: of one device.
        utilization: share of the peak that training reaches, above 0 and at most 1.

    Raises:
        ConfigError: not exactly one budget is given, a number is not positive, or money comes
            without a price.
    """
    given = {name: getattr(budget, name) for name in ("budget_flops", "device_hours", "money")}
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        raise ConfigError(
            f"give one budget of --{', --'.join(given)}, or a --recipe; got "
            f"{', '.join(named) or 'none'}"
        )

    for name, value in (named | {"price_per_device_hour": budget.price_per_device_hour}).items():
        if value is not None and not 0 < value < np.inf:
            raise ConfigError(f"--{name} must be above 0, got {value:g}")
    if not 0 < utilization <= 1:
        raise ConfigError(
            f"--utilization is a share of the peak, above 0 and at most 1, got {utilization:g}"
        )

    if budget.budget_flops is not None:
        return budget.budget_flops

    hours = budget.device_hours
    if budget.money is not None:
        if budget.price_per_device_hour is None:
            raise ConfigError(
                f"--money {budget.money:g} needs --price_per_device_hour, what a device costs for "
                "an hour"
            )
        hours = budget.money / budget.price_per_device_hour
    assert hours is not None
    return hours * _SECONDS_PER_HOUR * peak_flops_per_s * utilization


def plan_budget(
    flops: float,
    law: Law,
    template: dict[str, Any],
    *,
    family: str,
    block_size: int,
    count: Count,
    draws: Sequence[Law] = (),
    freedom: int = 1,
    machine: Machine | None = None,
    parameters: float | None = None,
) -> BudgetPlan:
    """Return the model and the steps that a budget is best spent on.

    The law says N; the nearest shape of the template is taken, and D is what the budget pays for
    with that shape's own FLOPs per token, attention and output matrix included, so that the budget
    is kept rather than 6ND.

    Args:
        flops: C.
        law: fitted, or published.
        template: a Hugging Face config whose width and depth are changed.
        family: what the template is called.
        block_size: tokens of a sequence.
        count: parameters and FLOPs of a config.
        draws: bootstrap refits of the law, for intervals.
        freedom: points less parameters of the fit that the draws come from.
        machine: bounds the batch.
        parameters: N to take in place of the law's, to see what another size would give.

    Raises:
        ConfigError: the budget is too small for the smallest shape.
    """
    wished = parameters if parameters is not None else law.optimum(flops)[0]
    config, costs = config_of_size(template, wished, block_size=block_size, count=count)
    rung = plan_rung(
        config,
        costs,
        flops / costs.train_flops_per_token,
        family=family,
        block_size=block_size,
        machine=machine,
    )

    if rung.steps < LEAST_STEPS:
        raise ConfigError(
            f"a budget of {flops:.3g} FLOPs is too small: the {family} of {costs.parameters:,} "
            f"parameters would take {rung.steps} steps and {LEAST_STEPS} are the least; raise it, "
            "or use a smaller vocabulary or block"
        )

    # What each refit of the law says of this model and this budget.
    losses = np.array([refit.loss(costs.parameters, rung.tokens) for refit in draws])
    sizes = np.array([refit.optimum(flops)[0] for refit in draws])
    return BudgetPlan(
        flops=flops,
        rung=rung,
        wished_parameters=wished,
        loss=law.loss(costs.parameters, rung.tokens),
        loss_interval=expanded_percentiles(losses, freedom=freedom) if len(draws) else None,
        parameters_interval=expanded_percentiles(sizes, freedom=freedom) if len(draws) else None,
        notes=tuple(_size_notes(wished, costs)),
    )


def _size_notes(wished: float, costs: Costs) -> list[str]:
    """Say where the nearest shape is far from the law's size."""
    notes: list[str] = []
    if not 0.7 < costs.parameters / wished < 1.4:
        notes.append(
            f"the law asks for {wished:,.0f} parameters; the nearest shape has "
            f"{costs.parameters:,}, because token tables take a fixed share: a smaller vocabulary "
            "comes closer"
        )
    return notes
