"""The end of a run says three results with intervals, the page, and the next command."""

from typing import Any

from hfstack.runs.ending import describe_ending
from hfstack.runs.record import RunRecord


def record(recipe: str, **changes: Any) -> RunRecord:
    plain: dict[str, Any] = {"commit": None, "versions": {}, "python": "3.11", "hardware": {}}
    plain |= {"world_size": 1, "started": "", "config_hash": "", "settings": {}, "command": ""}
    return RunRecord(recipe=recipe, output_dir="runs/my sft", **plain, **changes)


def test_results_come_with_intervals_and_units() -> None:
    metrics = {
        "train_loss": 1.0,
        "eval_loss": 0.5,
        "eval_accuracy": 0.912,
        "eval_accuracy_low": 0.88,
        "eval_accuracy_high": 0.937,
        "eval_f1_macro": 0.9,
        "eval_runtime": 3.0,
    }
    assert describe_ending(record("classify", metrics=metrics)) == [
        "results: accuracy 91.2 % (88.0 to 93.7), F1 macro 0.9000, held-out loss 0.5000 nats/row",
        "page: hfstack run report --runs 'runs/my sft'",
        "next: hfstack run predict --model_name_or_path 'runs/my sft' --datasets YOUR_FILE",
    ]


def test_a_policy_has_no_loss_and_is_talked_to() -> None:
    metrics = {"eval_loss": 1e-9, "eval_reward": 1.75, "start_reward": 0.1}
    lines = describe_ending(record("ppo", metrics=metrics))
    assert lines[0] == "results: reward 1.750"
    assert lines[2] == "next: hfstack chat 'runs/my sft'"


def test_a_page_of_its_own_is_named() -> None:
    made = record("explain", artifacts={"page": "explanations.html"})
    assert describe_ending(made) == [
        "page: runs/my sft/explanations.html",
    ]


def test_what_is_published_is_verified_next() -> None:
    metrics = {"files": 9, "bytes": 2048, "check_mean_logit": 0.67}
    sent = record("publish", metrics=metrics)
    sent.settings = {"PublishArgs": {"repo": "file:///a b", "dry_run": False}}
    assert describe_ending(sent) == [
        "results: files 9, bytes 2 KiB",  # the number of a check is no result
        "next: hfstack run verify --repo 'file:///a b'",
    ]
    sent.settings["PublishArgs"]["dry_run"] = True
    assert describe_ending(sent)[-1] == "results: files 9, bytes 2 KiB"


def test_a_unit_is_not_said_twice() -> None:
    made = record("evaluate_lm", metrics={"bits_per_byte": 1.47})
    assert describe_ending(made)[0] == "results: bits per byte 1.470"
