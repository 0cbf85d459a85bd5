"""Metrics between two logs are means over rollouts and updates, and start again after a log."""

import pytest
import torch

from hfstack.tasks.rl.ppo.loss import update_metric_names
from hfstack.tasks.rl.ppo.update_metrics import TrainingMetrics


def test_metrics_are_means_and_start_again_after_a_log():
    names = update_metric_names(has_critic=True)
    metrics = TrainingMetrics(names, torch.device("cpu"))
    metrics.add_rollout({"reward": 1.0, "episodes": 8})
    metrics.add_rollout({"reward": 3.0, "kl": 0.5, "episodes": 16})
    for _ in range(2):
        metrics.add_chunk(torch.ones(len(names)))
        metrics.add_chunk(torch.ones(len(names)))
        metrics.add_update()
        metrics.add_seconds(1.5)

    logged = metrics.pop(lambda tensor: 2 * tensor, skipped_updates=3)
    assert logged["reward"] == 2.0 and logged["kl"] == 0.5
    assert logged["episodes"] == 16, "the last rollout's, not a mean"
    assert {logged[name] for name in names} == {4.0}, "two chunks on each of two processes"
    assert (logged["policy/updates"], logged["policy/skipped_updates"]) == (2, 3)
    assert logged["time/update_s"] == pytest.approx(1.5)

    assert metrics.updates == 0 and metrics.rollouts == []
    metrics.add_update()
    again = metrics.pop(lambda tensor: tensor, skipped_updates=0)
    assert {again[name] for name in names} == {0.0} and "reward" not in again
