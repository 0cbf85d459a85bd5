"""Find out which engine generates with a model as its trainer scores it.

The native engine carries a key-value cache from step to step. Models whose state is something else
(Mamba, RWKV), that know no cache (OpenAI's GPT), or whose cached decoding is another computation
than their full pass generate by their own `generate` instead, and where padding changes what they
read, with prompts of one length at a time.

Legend: b prompts, V vocabulary, S tokens of a prompt with its completion.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from hfstack.errors import ConfigError
from hfstack.logs import get_logger
from hfstack.models.evaluation_mode import evaluation_mode
from hfstack.models.probes import random_ids
from hfstack.tasks.causal_lm.decoding.decode import pad_left
from hfstack.tasks.causal_lm.decoding.draw import SamplingSettings
from hfstack.tasks.causal_lm.sampling import set_aside_settings
from hfstack.tasks.rl.ppo.actor_critic import ActorCritic
from hfstack.tasks.rl.ppo.batching import Sequences, score_completions
from hfstack.tasks.rl.ppo.engines.interface import (
    GenerateEngine,
    RolloutEngine,
)
from hfstack.tasks.rl.ppo.engines.native import NativeEngine

logger = get_logger(__name__)

_LENGTHS = (3, 7, 3)  # of the probe's prompts; the first one is there twice
_WAYS = ((True, True), (True, False), (False, True), (False, False))  # with a cache, padded
_NEW_TOKENS = 4

# In nats. In fp32 rounding is below 1e-5; in 16 bits each length rounds differently.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 0.2


def fit_engine(engine: RolloutEngine, actor_critic: ActorCritic) -> RolloutEngine:
    """Return the engine, or what generates instead where it cannot with this model.

    Args:
        engine: as it was asked for. Only the native one and `generate` are probed.
        actor_critic: its weights are not in shards.

    Raises:
        ConfigError: nothing generates as the model's full pass scores.
    """
    name = type(actor_critic.base).__name__
    if isinstance(engine, NativeEngine):
        problem = native_problem(engine.settings, actor_critic)
        if problem is None:
            return engine
        logger.warning(
            "--rollout_engine native cannot generate with %s (%s): its own generate is used",
            name,
            problem,
        )
        engine = GenerateEngine(engine.settings)

    if not isinstance(engine, GenerateEngine):
        return engine
    problem = None
    for use_cache, pads in _WAYS:
        found = GenerateEngine(engine.settings, pads=pads, use_cache=use_cache)
        wrong = generate_problem(found, actor_critic)
        if wrong is None:
            _say_how(found, name)
            return found
        problem = problem or wrong

    raise ConfigError(
        f"{name} does not generate as it scores ({problem}), so it cannot be trained by "
        "reinforcement learning: use another model"
    )


def _say_how(engine: GenerateEngine, name: str) -> None:
    """Log what makes generation slower than it could be."""
    if not engine.use_cache:
        logger.warning("with its cache %s computes other logits: it generates without one", name)
    if not engine.pads:
        logger.warning("padding changes what %s reads: prompts of one length go together", name)


def native_problem(settings: SamplingSettings, actor_critic: ActorCritic) -> str | None:
    """Return why the native engine's log-probabilities are not the trainer's, or None."""
    if actor_critic.output_head is None:
        return "its head was not found"

    prompts = _prompts(actor_critic, _LENGTHS)

    short = replace(settings, max_new_tokens=_NEW_TOKENS, stop_token_ids=(-1,), batch_size=None)
    try:
        # the run's own random numbers are not touched
        with evaluation_mode(actor_critic), torch.no_grad(), _random_numbers(actor_critic):
            rollout = NativeEngine(short).generate(actor_critic, prompts)
            sequences = Sequences.join(prompts, rollout.completion_ids, settings.pad_token_id)
            scored = score_completions(
                lambda batch: actor_critic(
                    *batch, wanted=("log_probs",), temperature=settings.temperature
                ),
                sequences,
                device=actor_critic.device,
                max_tokens=None,
            )
    except torch.OutOfMemoryError:
        raise
    # a model that knows no such cache fails in its own way, of which there are many
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"

    found = torch.cat(cast(list[torch.Tensor], rollout.log_probs))
    return _difference(found, scored["log_probs"].flatten(), actor_critic)


def generate_problem(engine: GenerateEngine, actor_critic: ActorCritic) -> str | None:
    """Return why `generate` computes other logits than a full pass, or None."""
    pad = engine.settings.pad_token_id
    prompts = _prompts(actor_critic, _LENGTHS if engine.pads else _LENGTHS[:1] * 2)
    tokens, mask = pad_left(prompts, pad)
    model: Any = actor_critic.policy
    try:
        with evaluation_mode(actor_critic), torch.no_grad(), set_aside_settings(model):
            found = model.generate(
                input_ids=tokens.to(actor_critic.device),
                attention_mask=mask.to(actor_critic.device),
                do_sample=False,
                max_new_tokens=_NEW_TOKENS,
                min_new_tokens=_NEW_TOKENS,
                pad_token_id=pad,
                use_cache=engine.use_cache,
                output_logits=True,
                return_dict_in_generate=True,
            )

            # each text by itself, without its padding
            expected = [
                model(input_ids=row[None, -(len(prompt) + _NEW_TOKENS) :]).logits[0]
                for row, prompt in zip(found.sequences, prompts, strict=True)
            ]  # (S, V) each
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # as above
        return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"

    steps = torch.stack(found.logits, dim=1).float().log_softmax(-1)  # (b, new tokens, V)
    whole = torch.stack([row[-_NEW_TOKENS - 1 : -1] for row in expected]).float().log_softmax(-1)
    return _difference(steps, whole, actor_critic)


def _difference(
    found: torch.Tensor, expected: torch.Tensor, actor_critic: ActorCritic
) -> str | None:
    allowed = _TOLERANCE if actor_critic.dtype == torch.float32 else _HALF_TOLERANCE
    difference = float((found.cpu() - expected.cpu()).abs().max())
    # not `difference > allowed`, which is false for NaN
    if difference <= allowed:
        return None
    return f"its log-probabilities differ by {difference:.2g} nats from those of the full pass"


def _prompts(actor_critic: ActorCritic, lengths: Sequence[int]) -> list[list[int]]:
    """Return prompts of these lengths; equal lengths are equal prompts."""
    longest = random_ids(actor_critic.base, 1, max(lengths))[0].tolist()
    return [longest[:length] for length in lengths]


def _random_numbers(actor_critic: ActorCritic) -> Any:
    """Return a context that gives the random numbers back as they were."""
    devices = [actor_critic.device] if actor_critic.device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)
