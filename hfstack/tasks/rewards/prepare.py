"""Prepare rewards: functions, reward models, endpoints, all called the same way.

A reward is `reward(prompts, completions, **columns)` and returns a number for each completion, or
None where it does not apply. Prompts are texts, or conversations (lists of {role, content}); a
completion of a conversation is a list with the assistant's message. `columns` are the other columns
of the rows, one value a completion, and what the trainer adds (TRL: `completion_ids`,
`trainer_state`, `log_extra`, `log_metric`). A function may name the columns that it reads instead
of taking `**columns`. What `prepare_rewards` returns fits `reward_funcs` of TRL's RLOOTrainer and
GRPOTrainer.
"""

import inspect
import math
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
import torch
from transformers import PreTrainedTokenizerBase

from hfstack.errors import ConfigError, DataError, HfstackError
from hfstack.tasks.rewards.remote import RemoteReward
from hfstack.tasks.rewards.reward_model import RewardModel

Reward = Callable[..., Any]

_REMOTE = "is_remote"  # set on a prepared reward
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Scores:
    """The values of several rewards for the same completions."""

    totals: list[float | None]  # the weighted sum for each completion; None where no reward applies
    each: dict[str, list[float | None]]  # reward name -> one value a completion


def prepare_rewards(
    rewards: Sequence[Reward | str],
    *,
    device: torch.device | str = "cpu",
    policy_tokenizer: PreTrainedTokenizerBase | None = None,
    weights: Sequence[float] | None = None,
    as_text: bool | None = None,
    dtype: str = "float32",
) -> list[Any]:
    """Return checked rewards with different names, logged as `rewards/<name>/mean`.

    Args:
        rewards: functions, RewardModel or RemoteReward objects, paths of reward models, or http(s)
            URLs.
        device: where a reward model that is named by its path runs.
        policy_tokenizer: the tokenizer of the model that is trained, to say whether a reward model
            has another one.
        weights: as many as rewards, or None; only their number is looked at, since the trainer
            applies them.
        as_text: a reward model that is named by its path reads plain text, not conversations; None
            for what its run.json says.
        dtype: of such a model's weights.

    Raises:
        ConfigError: there is no reward, one is not callable, or the weights are more or fewer.
        CheckpointError: a path is not a reward model.
    """
    if not rewards:
        raise ConfigError(
            "no rewards: write a function into REWARDS, or name a reward model with --reward_model"
        )

    if weights is not None and len(weights) != len(rewards):
        raise ConfigError(
            f"--reward_weights has {len(weights)} values for {len(rewards)} rewards: give one for "
            "each"
        )

    # text from the command line names an endpoint or a model; REWARDS of a recipe hold functions
    loaded: list[Reward] = []
    for reward in rewards:
        if isinstance(reward, str) and "://" in reward:
            reward = RemoteReward(reward)
        elif isinstance(reward, str):
            reward = RewardModel(reward, device=device, as_text=as_text, dtype=dtype)

        if isinstance(reward, RewardModel) and policy_tokenizer is not None:
            reward.compare_tokenizer(policy_tokenizer)
        loaded.append(reward)

    # The trainer logs by name, so that of two of one name a single curve would be left.
    names = [reward_name(reward) for reward in loaded]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    named = [
        f"{name}_{index + 1}" if name in repeated else name for index, name in enumerate(names)
    ]

    return [checked_reward(reward, name=name) for reward, name in zip(loaded, named, strict=True)]


def reward_folders(rewards: Sequence[Reward | str]) -> list[str]:
    """Return the names of the models that rewards were loaded from, to record them."""
    names = (getattr(reward, "name_or_path", reward) for reward in rewards)
    return [name for name in names if isinstance(name, str) and "://" not in name]


def checked_reward(reward: Reward, *, name: str | None = None) -> Callable[..., list[float | None]]:
    """Wrap a reward so that a problem is reported in one line that names the sample.

    The wrapped reward passes on the columns that the function takes, and returns plain floats and
    None. It raises DataError when the function raises, lacks a column, or returns NaN, infinity, no
    number, or a list of the wrong length.
    """
    if not callable(reward):
        raise ConfigError(
            f"a reward is a function (prompts, completions, **columns), got {reward!r}"
        )

    if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__):
        raise ConfigError(
            f"reward {reward_name(reward)!r} is async; write a plain function, or use RemoteReward"
        )

    # Checked now: in training a wrong signature would come up after the first rollout.
    own_name = name or reward_name(reward)
    parameters = inspect.signature(reward).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if not takes_all and not {"prompts", "completions"} <= set(parameters):
        found = ", ".join(parameters) or "nothing"
        raise ConfigError(
            f"reward {own_name!r} must take (prompts, completions, **columns), but it takes {found}"
        )

    required = {
        key
        for key, one in parameters.items()
        if one.default is one.empty and one.kind not in _VARIADIC
    }
    required -= {"prompts", "completions"}

    def score(
        prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        missing = sorted(required - columns.keys())
        if missing:
            found = ", ".join(sorted(columns)) or "none"
            raise DataError(
                f"reward {own_name!r} reads the column {missing[0]!r}; the rows have: {found}"
            )

        given = columns
        if not takes_all:
            given = {key: value for key, value in columns.items() if key in parameters}

        try:
            values = reward(prompts=prompts, completions=completions, **given)
        except HfstackError:
            raise
        except Exception as error:
            # asked again one by one: its traceback does not say which answer it was
            one_by_one = partial(reward, **given)
            raise _find_culprit(one_by_one, own_name, prompts, completions, error) from error

        return _read_values(values, own_name, prompts, completions)

    score.__name__ = score.__qualname__ = own_name
    vars(score)[_REMOTE] = is_remote(reward)
    return score


def is_remote(reward: Reward) -> bool:
    """Return whether a reward only waits for an endpoint; it may be prepared already."""
    return isinstance(reward, RemoteReward) or getattr(reward, _REMOTE, False)


def score_all(
    rewards: Sequence[Callable[..., list[float | None]]],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    weights: Sequence[float] | None = None,
    columns: Mapping[str, Any] | None = None,
    asked: Mapping[str, Future[list[float | None]]] | None = None,
) -> Scores:
    """Call prepared rewards on the same completions and return their weighted sum.

    Weights are 1 by default. A reward that does not apply to a completion (None) is left out of its
    sum, as TRL does.

    Args:
        rewards: prepared.
        prompts: texts or conversations.
        completions: one for each prompt.
        weights: as many as rewards.
        columns: passed on to the rewards.
        asked: rewards, by name, that were asked for these completions before: their values are
            waited for, last.
    """
    shares = [1.0] * len(rewards) if weights is None else list(weights)
    if len(shares) != len(rewards):
        raise ConfigError(
            f"{len(shares)} reward weights for {len(rewards)} rewards: give one for each"
        )

    waiting = asked or {}
    found = {
        name: reward(prompts=prompts, completions=completions, **(columns or {}))
        for name, reward in zip(map(reward_name, rewards), rewards, strict=True)
        if name not in waiting
    }
    found |= {name: future.result() for name, future in waiting.items()}
    each = {name: found[name] for name in map(reward_name, rewards)}

    totals: list[float | None] = []
    for values in zip(*each.values(), strict=True):
        parts = [
            share * value for share, value in zip(shares, values, strict=True) if value is not None
        ]
        totals.append(sum(parts) if parts else None)

    return Scores(totals, each)


def reward_name(reward: Reward) -> str:
    """Return a reward's name: of the function, the model's folder, or the endpoint."""
    if isinstance(reward, RewardModel | RemoteReward):
        return reward.name
    return getattr(reward, "__name__", type(reward).__name__)


def _read_values(
    values: Any, name: str, prompts: Sequence[Any], completions: Sequence[Any]
) -> list[float | None]:
    """Return the values as floats and None, or name the first that is not a number."""
    if isinstance(values, torch.Tensor | numpy.ndarray):
        values = values.tolist()

    if not isinstance(values, list | tuple):
        raise DataError(
            f"reward {name!r} must return a list of numbers, one a completion; got "
            f"{_quote_briefly(values)}"
        )

    if len(values) != len(completions):
        blame = _sample(min(len(values), len(completions) - 1), prompts, completions)
        missing = "the last one is"
        if len(values) < len(completions):
            missing = "the first without a value is"

        raise DataError(
            f"reward {name!r} returned {len(values)} values for {len(completions)} completions; "
            f"{missing} {blame}"
        )

    # None is how a reward says that it does not apply: TRL leaves it out of the sum.
    floats: list[float | None] = []
    for index, value in enumerate(values):
        if value is None:
            floats.append(None)
            continue

        try:
            # float() reads texts as well, and no integer beyond its range.
            number = float("nothing" if isinstance(value, str) else value)
        except (TypeError, ValueError, OverflowError):
            place = _sample(index, prompts, completions)
            raise DataError(
                f"reward {name!r} returned {_quote_briefly(value)}, not a number, for {place}"
            ) from None

        if not math.isfinite(number):
            place = _sample(index, prompts, completions)
            raise DataError(
                f"reward {name!r} returned {number} for {place}; return None where it does not "
                "apply"
            )

        floats.append(number)

    return floats


def _find_culprit(
    reward: partial[Any],
    name: str,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    error: Exception,
) -> DataError:
    """Call the reward sample by sample until one raises, to name it in the message."""
    count = len(completions)
    for index in range(count):
        one = {
            key: [value[index]] if isinstance(value, list) and len(value) == count else value
            for key, value in reward.keywords.items()
        }

        try:
            reward(prompts=[prompts[index]], completions=[completions[index]], **one)
        except Exception as single:
            return DataError(
                f"reward {name!r} raised {_described(single)} for "
                f"{_sample(index, prompts, completions)}"
            )

    begins = _sample(0, prompts, completions)
    return DataError(
        f"reward {name!r} raised {_described(error)} for a batch of {count}, and for none of its "
        f"samples alone; it begins with {begins}"
    )


def _described(error: Exception) -> str:
    """Return the class, text and innermost place of an exception, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {_quote_briefly(str(error))}{place}"


def _sample(index: int, prompts: Sequence[Any], completions: Sequence[Any]) -> str:
    shown = (
        f"prompt {_quote_briefly(prompts[index])}, completion {_quote_briefly(completions[index])}"
    )
    return f"sample {index + 1} of {len(completions)}: {shown}"


def _quote_briefly(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    if not isinstance(value, str):
        return text[:80]
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
