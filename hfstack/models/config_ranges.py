"""Refuse numbers of a config.json that no model can have.

transformers checks types, and of the values only a few: a dropout of 7, an epsilon of nan or a
rotary base below 0 load, and give noise, nan or a traceback at the first batch. A family may call
its own numbers what it likes, so only names that mean the same in all of transformers are listed.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from hfstack.errors import HfstackError
from hfstack.ranges import Range, read_range

# Patterns of whole names by their range; the first that fits counts.
_RANGES: tuple[tuple[re.Pattern[str], Range], ...] = tuple(
    (re.compile(names), read_range(interval))
    for names, interval in (
        (r"(.*_)?(dropout|pdrop|layerdrop)(_rate|_prob|_p)?", "[0, 1)"),
        (r"drop(_path)?_rate", "[0, 1)"),
        (r"(.*_)?(eps|epsilon)", "[0, 1]"),
        (r"(.*_)?rope_theta|rotary_emb(edding)?_base", "(0, inf)"),
        (r"partial_rotary_factor", "(0, inf)"),
        (r"rotary_pct", "[0, 1]"),
        (r"(.*_)?initializer_(range|factor)|init_std", "[0, inf)"),
        (r"(.*_)?softcap(ping)?|(router_)?(aux|z)_loss_coef", "[0, inf)"),
        (r"hidden_size|n_embd|d_model|vocab_size", "[1, inf)"),
        (r"((en|de)coder_)?(num_)?attention_heads|num_(key_value_)?heads|n_heads?", "[1, inf)"),
        (r"max_position_embeddings|n_positions", "[1, inf)"),
        (r"(moe_)?intermediate_size|n_inner|d_ff|((en|de)coder_)?ffn_dim", "[0, inf)"),
        (r"head_dim|d_kv", "[0, inf)"),
    )
)
# What transformers writes in place of numbers that JSON lacks.
_SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_DEEPEST = 8


def refuse_impossible_numbers(
    config: Mapping[str, Any], place: object, *, raises: type[HfstackError]
) -> None:
    """Raise on a number of a config that no model can have.

    Args:
        config: the content of a config.json.
        place: what a message begins with.
        raises: the error.
    """
    for inside in _configs(config):
        for name, value in _numbers_inside(inside):
            allowed = _range_of(name)
            # No float is as large.
            if allowed is not None and abs(value) >= 1 << 63 and isinstance(value, int):
                raise raises(f"{place}: {name} is a number of {len(str(abs(value)))} digits")
            if isinstance(value, float) and math.isnan(value):
                raise raises(f"{place}: {name} is nan, which is no number")
            if allowed is not None and not allowed.holds(value):
                raise raises(f"{place}: {name} is {value:g}; it has to be {allowed.words}")

        heads, shared = inside.get("num_attention_heads"), inside.get("num_key_value_heads")
        if _is_count(heads) and _is_count(shared) and heads % shared:
            raise raises(
                f"{place}: num_attention_heads is {heads}, which the {shared} of "
                "num_key_value_heads do not divide"
            )


def _range_of(name: str) -> Range | None:
    return next((allowed for names, allowed in _RANGES if names.fullmatch(name)), None)


def _configs(config: Mapping[str, Any], level: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield a config and those inside it, such as `text_config` or `rope_parameters`."""
    yield config
    for value in config.values():
        if isinstance(value, Mapping) and level < _DEEPEST:
            yield from _configs(value, level + 1)


def _numbers_inside(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a config by name, those of the configs inside it left out."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value.keys() == {"__float__"}:
            value = _SPELLED.get(value["__float__"])
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield str(name), value


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
