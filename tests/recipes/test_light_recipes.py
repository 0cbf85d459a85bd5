"""Recipes that need no torch import none: seconds of every small step."""

import subprocess
import sys
from pathlib import Path

from hfstack.shipped import RECIPES

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
runpy.run_path(f"{RECIPES}/scaling_fit.py")
print(sorted({"torch", "transformers.trainer", "trl", "accelerate"} & set(sys.modules)))
"""


def test_a_corpus_its_cleaning_and_the_report_import_no_torch(tmp_path: Path) -> None:
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
