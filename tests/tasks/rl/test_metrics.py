"""A run is summarised by its ends, and stopped where no answer is better than another."""

from typing import Any

import pytest

from hfstack.errors import DataError
from hfstack.tasks.rl.metrics import StopWithoutSpread, last_evaluation, summarize_history


class State:
    """What a callback sees of the trainer."""

    def __init__(self) -> None:
        self.log_history: list[dict[str, Any]] = [{}]
        self.global_step = 3
        self.max_steps = 10


def test_curves_are_summarized_by_their_ends() -> None:
    history = [
        {"step": 0, "eval_reward": 0.1, "eval_ended_share": 0.5},
        {"step": 1, "reward": 0.2, "kl": 0.0},
        {"step": 2, "reward": 0.4, "kl": 0.1, "kl_per_completion": 2.0},
        {"step": 2, "eval_reward": 0.5},
    ]
    expected = {
        "start_reward": 0.1,
        "start_ended_share": 0.5,
        "reward": 0.4,
        "kl": 0.1,
        "kl_per_completion": 2.0,
    }
    assert summarize_history(history) == expected
    assert last_evaluation(history, 2) == {"eval_reward": 0.5}
    assert last_evaluation(history, 3) is None and last_evaluation([], 0) is None
    assert summarize_history([{"step": 5, "eval_reward": 1.0}]) == {}, "a resumed run has no start"


def test_a_first_evaluation_without_spread_stops_the_run() -> None:
    state, none = State(), None
    assert_spread: Any = StopWithoutSpread().on_evaluate
    with pytest.raises(DataError, match="all held-out answers got the same reward, 0.5, at step 3"):
        assert_spread(none, state, none, metrics={"eval_reward": 0.5, "eval_reward_std": 0.0})

    # nothing is lost by an evaluation after the last step
    state.max_steps = 3
    at_end: Any = StopWithoutSpread()
    at_end.on_evaluate(none, state, none, metrics={"eval_reward": 0.5, "eval_reward_std": 0.0})

    # later ones may be: a policy that always succeeds has no spread left
    later: Any = StopWithoutSpread()
    later.on_evaluate(none, state, none, metrics={"eval_reward": 0.5, "eval_reward_std": 0.1})
    later.on_evaluate(none, state, none, metrics={"eval_reward": 1.0, "eval_reward_std": 0.0})
