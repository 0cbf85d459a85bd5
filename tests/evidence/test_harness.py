"""lm-eval on a model that hfstack has loaded: its own numbers, in run.json's form."""

import importlib.util
import json
from pathlib import Path

import pytest

from hfstack.errors import ConfigError, MissingExtraError
from hfstack.evidence.harness import harness_metrics, harness_version
from hfstack.runs.record import read_run
from tests.tiny_chat import save_tiny_chat

INSTALLED = importlib.util.find_spec("lm_eval") is not None
ROWS = [
    {
        "question": f"Where is fox {n}?",
        "options": ["at home", "on the hill"],
        "right": n % 2,
        "text": ["home", "hill"][n % 2],
    }
    for n in range(24)
]
CHOOSE = """
task: where_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{rows}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{options}}}}"
doc_to_target: right
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
GENERATE = """
task: where_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{rows}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{text}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
  - {{metric: bleu, aggregation: bleu, higher_is_better: true}}
metadata: {{version: 2.0}}
"""


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_lm_eval_the_extra_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'hfstack\[harness\]'"):
        harness_version()


def test_results_become_metrics_with_intervals() -> None:
    found = {
        "results": {
            "where": {
                "alias": "where",
                "acc,none": 0.5,
                "acc_stderr,none": 0.1,
                "bleu,strict": 2.0,
                "bleu_stderr,strict": "N/A",
            }
        },
        "n-shot": {"where": 3},
        "n-samples": {"where": {"original": 24, "effective": 24}},
        "versions": {"where": 1.0},
    }
    metrics, table = harness_metrics(found)
    assert metrics == {
        "where_acc": 0.5,
        "where_acc_low": pytest.approx(0.5 - 0.1959964),
        "where_acc_high": pytest.approx(0.5 + 0.1959964),
        "where_bleu_strict": 2.0,
    }
    assert table[0] == ["where", "acc", "0.5", "0.304 to 0.696", 3, 24, "1.0"]
    assert table[1][:4] == ["where", "bleu", "2", "–"]


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs the extra harness: lm_eval>=0.4.13")
@pytest.mark.filterwarnings("ignore")
def test_numbers_are_those_of_lm_eval_itself(
    run_recipe, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness loads the same folder by itself, and asks the same two local tasks."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in {"choice": CHOOSE, "text": GENERATE}.items():
        (folder / f"{name}.yaml").write_text(text.format(rows=rows))
    model = save_tiny_chat(tiny_llama, tmp_path / "model")

    found = run_recipe(
        "score",
        f"--model_name_or_path={model}",
        *("--harness_tasks", "where_choice", "where_text"),
        f"--harness_folder={folder}",
        f"--output_dir={tmp_path / 'out'}",
    )
    wanted = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={model},dtype=float32",
        tasks=["where_choice", "where_text"],
        device="cpu",
        batch_size=8,
        task_manager=TaskManager(include_path=str(folder)),
        bootstrap_iters=0,
    )["results"]
    for task, key, own in [
        ("where_choice", "acc,none", "where_choice_acc"),
        ("where_choice", "acc_norm,none", "where_choice_acc_norm"),
        ("where_text", "exact_match,none", "where_text_exact_match"),
        ("where_text", "bleu,none", "where_text_bleu"),
    ]:
        assert found[own] == pytest.approx(wanted[task][key], abs=1e-6)
    record = read_run(tmp_path / "out")
    assert record.versions["lm_eval"] == harness_version()
    table = record.tables[f"lm-eval {harness_version()}"]
    assert [row[0] for row in table["rows"]] == ["where_choice"] * 2 + ["where_text"] * 2

    with pytest.raises(ConfigError, match="--harness_tasks nowhere: no such task of lm-eval"):
        run_recipe(
            "score",
            *(f"--model_name_or_path={model}", "--harness_tasks=nowhere"),
            f"--output_dir={tmp_path / 'none'}",
        )
