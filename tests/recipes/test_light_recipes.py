"""Recipes that need no torch or pandas import none: seconds of every small step."""

import json
import subprocess
import sys
from pathlib import Path

import numpy
from safetensors.numpy import save_file

from hfstack.shipped import RECIPES
from tests.reporting.test_page import write_run

PROGRAM = """
import runpy, sys

def run(recipe, *flags):
    sys.argv = [f"{recipe}.py", *flags]
    runpy.run_path(f"{RECIPES}/{recipe}.py", run_name="__main__")

RECIPES = sys.argv[1]
run("demo_corpus", "--output_dir", "corpus", "--stories", "20", "--instructions", "0",
    "--sentiment", "0")
run("clean", "--output_dir", "clean", "--datasets", "corpus/raw.jsonl")
run("report", "--output_dir", "report", "--runs", "corpus", "clean")
run("publish", "--run", "clean", "--dry_run", "true", "--output_dir", "published")
run("publish", "--run", "classifier", "--dry_run", "true", "--output_dir", "published2")
runpy.run_path(f"{RECIPES}/scaling_fit.py")
print(sorted({"torch", "transformers.trainer", "trl", "accelerate", "pandas"} & set(sys.modules)))
"""


def write_classifier(folder: Path) -> None:
    """Write a finished run of classify as `publish` reads it: by its files alone."""
    write_run(folder, "classify")
    config = {"architectures": ["BertForSequenceClassification"], "model_type": "bert"}
    config |= {"id2label": {"0": "bad", "1": "good"}, "hidden_size": 8, "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "classifier.json"):
        (folder / name).write_text("{}")
    save_file({"score": numpy.zeros(2, numpy.float32)}, folder / "model.safetensors")


def test_small_recipes_and_a_dry_run_import_no_torch_and_no_pandas(tmp_path: Path) -> None:
    write_classifier(tmp_path / "classifier")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(RECIPES)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "report" / "report.html").is_file()
