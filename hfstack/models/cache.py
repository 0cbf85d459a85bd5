"""Name a model's cache as the installed transformers does: it was renamed in 5.24."""

from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

# `past_key_values` up to 5.23, `cache` from 5.24 on: an argument of forward, a field of its
# outputs, and the name under which generate() carries it from step to step.
CACHE_NAME = (
    "cache"
    if any(field.name == "cache" for field in fields(CausalLMOutputWithPast))
    else "past_key_values"
)


def get_cache(outputs: Any) -> Any:
    """Return the cache that a forward pass returned, or None."""
    return getattr(outputs, CACHE_NAME, None)
