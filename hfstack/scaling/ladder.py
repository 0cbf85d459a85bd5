"""Plan a ladder: sizes times token budgets become configs, steps and costs.

The rules, all here:

- **Shape.** Width decides: depth is width / 64, at least 2, the proportion of GPT-2's and Llama's
  small models; heads are 64 wide from width 256 on, 32 below, 16 below 64. Recurrent models keep
  their template's depth. Everything else (MLP ratio, share of key/value heads, activation) is the
  template's. The width whose parameter count is nearest to the size asked for is taken. Kaplan et
  al. (2020, section 3.1): at a fixed size shape hardly matters.
- **Initialisation.** Weights have a standard deviation of sqrt(2 / (5 width)) (Nguyen and Salazar
  2019, arXiv:1910.05895), which is the usual 0.02 at a width of 1,000. With 0.02 at every width
  small models stay on a plateau for hundreds of steps, and a ladder would measure that.
- **Learning rate and batch** follow the compute of the rung, as DeepSeek LLM fitted them (Bi et al.
  2024, arXiv:2401.02954, section 3.1): rate 0.3118 C^-0.125 and batch 0.2920 C^0.3271 tokens. They
  fitted 1e17 to 2e19 FLOPs; below that it is an extrapolation, and the rate is kept at 0.01 or
  less. Their C has attention and no output matrix (72 layers width^2 + 12 layers width length, a
  token); the full count here gives slightly larger batches.
- **Compute** is counted from the config by the function that is passed in, attention and output
  matrix included; 6ND, with and without embeddings, is reported beside it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from hfstack.errors import ConfigError
from hfstack.models.context import CONTEXT_FIELDS

Design = Literal["isoflop", "fixed_ratio", "grid"]

WIDTH_PER_LAYER = 64
LARGEST_RATE = 0.01
LEAST_STEPS = 20
"""Optimizer steps below which a rung says nothing: the schedule would be all warm-up."""

_WIDTH_FIELDS = ("hidden_size", "n_embd", "d_model")
_DEPTH_FIELDS = ("num_hidden_layers", "n_layer")
_HEAD_FIELDS = ("num_attention_heads", "n_head")
_INNER_FIELDS = ("intermediate_size", "n_inner", "ffn_dim", "d_ff")
_INNER_MULTIPLE = 32


@dataclass(frozen=True)
class Costs:
    """What a config costs, as the caller counts it."""

    parameters: int
    """Shared ones once."""
    non_embedding: int
    """Without token and position tables and output matrix: Kaplan's N."""
    train_flops_per_token: float
    """Forward and backward, attention over the block and the output matrix included."""
    method: str
    """`formula` or `measured`."""


Count = Callable[[dict[str, Any]], Costs]


@dataclass(frozen=True)
class Rung:
    """One model to train: what it is, how long, how fast, and what that costs."""

    name: str
    family: str
    """What the template is called: models of one family are fitted together."""
    config: dict[str, Any]
    """A Hugging Face config."""
    costs: Costs
    block_size: int
    """Tokens of a sequence."""
    micro_batch: int
    """Sequences that one process takes at once."""
    accumulation: int
    """Micro-batches of one optimizer step."""
    processes: int
    steps: int
    learning_rate: float

    @property
    def sequences_per_step(self) -> int:
        """Return the sequences of one optimizer step, all processes together."""
        return self.micro_batch * self.accumulation * self.processes

    @property
    def tokens(self) -> int:
        """Return D: tokens that training reads, repeated ones counted again."""
        return self.steps * self.sequences_per_step * self.block_size

    @property
    def flops(self) -> float:
        """Return C, the full count."""
        return self.costs.train_flops_per_token * self.tokens

    @property
    def flops_6nd(self) -> float:
        """Return C as Chinchilla's 6ND."""
        return 6.0 * self.costs.parameters * self.tokens

    @property
    def flops_kaplan(self) -> float:
        """Return C as Kaplan's 6ND without embeddings."""
        return 6.0 * self.costs.non_embedding * self.tokens


@dataclass(frozen=True)
class Machine:
    """What bounds a batch."""

    processes: int = 1
    most_sequences: int = 64
    """Sequences that one process can take at once."""


def build_ladder(
    templates: Mapping[str, dict[str, Any]],
    sizes: Sequence[float],
    budgets: Sequence[float],
    *,
    design: Design,
    block_size: int,
    count: Count,
    rate_scale: float = 1.0,
    machine: Machine | None = None,
) -> list[Rung]:
    """Return the rungs of every family, cheapest first.

    Args:
        templates: family name to a Hugging Face config of that family, with the tokenizer's
            vocabulary.
        sizes: parameters to aim at, embeddings included.
        budgets: `isoflop`: FLOPs of each rung, so that larger models see fewer tokens;
            `fixed_ratio`: tokens per parameter; `grid`: tokens of each rung.
        design: see `budgets`; every size is combined with every budget.
        block_size: tokens of a sequence.
        count: parameters and FLOPs of a config.
        rate_scale: multiplies the rule's learning rate.
        machine: bounds the batch.

    Raises:
        ConfigError: a size or budget is not positive, two sizes give one shape, a config has no
            width to change, or a budget is too small for a rung.
    """
    for name, values in (("sizes", sizes), ("budgets", budgets)):
        if not values:
            raise ConfigError(f"--{name} is empty: name at least one")
        for value in values:
            if not 0 < value < math.inf:
                raise ConfigError(f"--{name} must be positive numbers, got {value:g}")

    rungs: list[Rung] = []
    for family, template in templates.items():
        known: dict[int, float] = {}
        for size in sorted(sizes):
            config, costs = config_of_size(template, size, block_size=block_size, count=count)
            if costs.parameters in known:
                raise ConfigError(
                    f"--sizes {known[costs.parameters]:g} and {size:g} give the same {family} of "
                    f"{costs.parameters:,} parameters: spread them further apart, or use a smaller "
                    "vocabulary"
                )
            known[costs.parameters] = size

            # What is left to choose for a rung of this size is its tokens.
            plan = partial(
                plan_rung,
                config,
                costs,
                family=family,
                block_size=block_size,
                rate_scale=rate_scale,
                machine=machine,
            )
            rungs += [_plan_budget(plan, design, budget, costs) for budget in sorted(budgets)]
    return sorted(rungs, key=lambda rung: rung.flops)


def _plan_budget(
    plan: Callable[[float], Rung], design: Design, budget: float, costs: Costs
) -> Rung:
    """Return the rung of a budget; a ConfigError where it has too few steps."""
    tokens = _rung_tokens(design, budget, costs)
    rung = plan(tokens)
    if rung.steps >= LEAST_STEPS:
        return rung

    least = _least_tokens(tokens, lambda more: plan(more).steps)
    raise ConfigError(
        f"--budgets {budget:g} is too small for the {rung.family} of {costs.parameters:,} "
        f"parameters: {tokens:,.0f} tokens are {rung.steps} steps of {rung.sequences_per_step} x "
        f"{rung.block_size}, and {LEAST_STEPS} are the least; raise it to "
        f"{budget * least / tokens:.2g}, or drop that size"
    )


def _rung_tokens(design: Design, budget: float, costs: Costs) -> float:
    """Return the tokens that a budget gives to a model of these costs."""
    match design:
        case "isoflop":
            return budget / costs.train_flops_per_token
        case "fixed_ratio":
            return budget * costs.parameters
        case "grid":
            return budget


def _least_tokens(tokens: float, steps_of: Callable[[float], int]) -> float:
    """Return the tokens that are enough steps.

    Batches grow with compute, so this is not in proportion.
    """
    while steps_of(tokens) < LEAST_STEPS:
        tokens *= 1.1
    return tokens


def plan_rung(
    config: dict[str, Any],
    costs: Costs,
    tokens: float,
    *,
    family: str,
    block_size: int,
    rate_scale: float = 1.0,
    machine: Machine | None = None,
) -> Rung:
    """Divide tokens into steps, with batch and learning rate of their compute."""
    machine = machine or Machine()
    flops = tokens * costs.train_flops_per_token
    per_process = max(1, round(tokens_per_step(flops) / block_size / machine.processes))
    accumulation = math.ceil(per_process / machine.most_sequences)
    micro_batch = math.ceil(per_process / accumulation)

    step_tokens = micro_batch * accumulation * machine.processes * block_size
    steps = round(tokens / step_tokens)

    # Four digits are enough of a rule, and can be typed again.
    rate = float(f"{min(LARGEST_RATE, learning_rate(flops)) * rate_scale:.4g}")
    return Rung(
        name=f"{family}-{_short_number(costs.parameters)}-{_short_number(steps * step_tokens)}",
        family=family,
        config=config,
        costs=costs,
        block_size=block_size,
        micro_batch=micro_batch,
        accumulation=accumulation,
        processes=machine.processes,
        steps=steps,
        learning_rate=rate,
    )


def learning_rate(flops: float) -> float:
    """Return the peak learning rate for a compute, before the bound.

    This is equation 1 of Bi et al. (2024).
    """
    return 0.3118 * flops**-0.125


def tokens_per_step(flops: float) -> float:
    """Return the batch in tokens for a compute (Bi et al. 2024, equation 1)."""
    return 0.2920 * flops**0.3271


def config_of_size(
    template: dict[str, Any], size: float, *, block_size: int, count: Count
) -> tuple[dict[str, Any], Costs]:
    """Return the config whose parameters lie nearest to `size`, and its costs.

    The template is scaled in width and depth; near is by ratio.

    Raises:
        ConfigError: the template has no width that can be changed.
    """

    def costs(place: int) -> Costs:
        return count(scale_config(template, _width_at(place), block_size=block_size))

    # The parameters of wider models are more, so that the size lies between two widths.
    high = 0
    while costs(high).parameters < size and _width_at(high) < 2**15:
        high = max(1, 2 * high)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if costs(middle).parameters < size:
            low = middle
        else:
            high = middle

    nearest = min((low, high), key=lambda place: abs(math.log(costs(place).parameters / size)))
    config = scale_config(template, _width_at(nearest), block_size=block_size)
    return config, costs(nearest)


def scale_config(template: dict[str, Any], width: int, *, block_size: int) -> dict[str, Any]:
    """Return the template with another width and what follows from it.

    These are the depth, heads, MLP and context.

    Raises:
        ConfigError: the template has no known name for its width or depth.
    """
    config = dict(template)
    fields = {}
    for what, options in (("width", _WIDTH_FIELDS), ("depth", _DEPTH_FIELDS)):
        field = _find_field(config, options)
        if field is None:
            raise ConfigError(
                f"a config of model_type {template.get('model_type')!r} has no {what} under a "
                f"known name ({', '.join(options)}): write a config.json for each rung instead"
            )
        fields[what] = field
    config[fields["width"]] = width

    # attention: a Transformer
    heads_field = _find_field(config, _HEAD_FIELDS)
    if heads_field is not None:
        config[fields["depth"]] = max(2, round(width / WIDTH_PER_LAYER))
        heads = width // head_width(width)
        config[heads_field] = heads
        if config.get("num_key_value_heads"):
            shared = max(1, round(template[heads_field] / template["num_key_value_heads"]))
            divisor = next(n for n in range(shared, 0, -1) if heads % n == 0)
            config["num_key_value_heads"] = heads // divisor
        if config.get("head_dim"):
            config["head_dim"] = head_width(width)

    if (inner := _find_field(config, _INNER_FIELDS)) is not None:
        wanted = template[inner] / template[fields["width"]] * width
        config[inner] = max(1, math.ceil(wanted / _INNER_MULTIPLE - 1e-9)) * _INNER_MULTIPLE

    if config.get("embedding_size"):
        config["embedding_size"] = width
    if config.get("initializer_range"):
        config["initializer_range"] = float(f"{math.sqrt(2 / (5 * width)):.4g}")
    if (context := _find_field(config, CONTEXT_FIELDS)) is not None:
        config[context] = block_size
    return config


def head_width(width: int) -> int:
    """Return the width of a head: 64 from 256 on, 32 below, 16 below 64."""
    return 64 if width >= 256 else 32 if width >= 64 else 16


def blocks_read(blocks: int, *, batch: int, accumulation: int, steps: int, drop_last: bool) -> int:
    """Return the sequences that optimizer steps read from so many.

    Repeated ones are counted again. An epoch that does not divide into whole steps ends with a
    smaller one.

    Args:
        blocks: sequences of the data, at least one batch.
        batch: of one micro-batch, all processes together.
        accumulation: micro-batches of a step.
        steps: optimizer steps.
        drop_last: whether an epoch leaves out what is no whole batch.
    """
    epoch = blocks // batch * batch if drop_last else blocks
    epochs, rest = divmod(steps, math.ceil(epoch / (batch * accumulation)))
    return epochs * epoch + min(epoch, rest * batch * accumulation)


TABLE: list[str] = [
    "rung",
    "parameters",
    "non_embedding",
    "tokens",
    "epochs",
    "steps",
    "batch_tokens",
    "learning_rate",
    "flops",
    "flops_6nd",
    "flops_kaplan",
    "flop_count",
    "eval_loss",
    "seconds",
]


def table_row(rung: Rung, metrics: Mapping[str, float]) -> list[Any]:
    """Return the cells of a rung under `TABLE`.

    Those that only training knows are None before it.
    """
    unique, seconds = metrics.get("unique_tokens"), metrics.get("train_runtime")
    return [
        rung.name,
        rung.costs.parameters,
        rung.costs.non_embedding,
        # how long
        rung.tokens,
        round(rung.tokens / unique, 3) if unique else None,
        rung.steps,
        rung.sequences_per_step * rung.block_size,
        rung.learning_rate,
        # what it costs
        float(f"{rung.flops:.4g}"),
        float(f"{rung.flops_6nd:.4g}"),
        float(f"{rung.flops_kaplan:.4g}"),
        rung.costs.method,
        # how good it became
        metrics.get("eval_loss"),
        round(seconds, 1) if seconds else None,
    ]


def _width_at(place: int) -> int:
    """Return a width to try: multiples of 16 to 64, of 32 to 256, of 64 beyond."""
    if place < 4:
        return 16 * (place + 1)
    if place < 10:
        return 64 + 32 * (place - 3)
    return 256 + 64 * (place - 9)


def _find_field(config: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return which of these names the config has a value under."""
    return next((name for name in names if config.get(name) is not None), None)


def _short_number(value: float) -> str:
    """Return `98k` or `2.05m`: three digits, fit for a folder's name."""
    for limit, suffix in ((1e9, "b"), (1e6, "m"), (1e3, "k")):
        if value >= limit * 0.9995:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.0f}"
