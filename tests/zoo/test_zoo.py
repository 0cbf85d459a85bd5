"""A dozen families hold what recipes rely on, or are refused in one line; `make zoo` runs all."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hfstack.runs.stop_signals import StopSignals
from tests.zoo import matrix
from tests.zoo.cells import CELLS, Cell
from tests.zoo.families import CAUSAL, ENCODER, KINDS, build, families, zoo_tokenizer
from tests.zoo.matrix import read_cells, run_family
from tests.zoo.properties import measure
from tests.zoo.table import write_table
from tests.zoo.texts import write_rows

# family: how packing works, whether the loss is fused, and what generates for PPO
EXPECTED = {
    "llama": ("positions", "fused", "native"),
    "opt": ("mask", "fused", "native"),
    "gpt_neox": ("positions", "fused", "native"),
    "gemma2": ("positions", "fused", "native"),
    "cohere": ("positions", "fused", "native"),
    "gpt_oss": ("mask", "fused", "native"),
    "mixtral": ("positions", "fused", "native"),
    "bart": ("refused", "the model's own", "generate, one length at a time"),
    "mamba": ("refused", "fused", "generate"),
    "modernbert-decoder": ("positions", "fused", "native"),
    "bert": ("mask", "fused", "native"),
    "bloom": ("refused", "fused", "native"),
}


@pytest.mark.parametrize("family", EXPECTED)
def test_a_family_holds_what_recipes_rely_on(family: str, tmp_path: Path) -> None:
    assert build(family, tmp_path / family, zoo_tokenizer()) is None
    found = dict(measure(CAUSAL, family, tmp_path / family))
    packing, fused, engine = EXPECTED[family]
    state, figure = found["packing"]
    assert (state if state == "refused" else figure.split(",")[0]) == packing
    assert found["fused loss"] == ("works", fused)
    assert found["engine"] == ("works", engine)
    assert found["head"][0] == "works"


def test_the_table_counts_what_works_and_names_what_does_not() -> None:
    cells = [
        Cell(CAUSAL, "opt", "packing", "works", "mask, 1e-07", {"cpu_s": 40.0}),
        Cell(CAUSAL, "mamba", "packing", "refused", "/models/mamba cannot", {"cpu_s": 20.0}),
        Cell(CAUSAL, "blt", "build", "refused", "too large"),
        Cell(ENCODER, "bert", "tag", "traceback", "KeyError"),
    ]
    page = write_table(cells)
    assert f"2 of the {len(families(CAUSAL))} families that `AutoModelForCausalLM` knows" in page
    assert "1 minutes of CPU" in page.replace("\n", " ")
    assert "| packing | 1 | 1 | 0 |" in page and "| tag | 0 | 0 | 1 |" in page
    assert "| opt | mask, 1e-07 |" in page and "- mamba, packing: <model> cannot" in page
    assert "- blt, build: too large" in page and "- bert, tag: **traceback** KeyError" in page


def test_sigterm_in_a_recipe_ends_the_matrix(tmp_path: Path, monkeypatch) -> None:
    ran: list[str] = []

    def stopped(kind: str, family: str, name: str, *_: Any) -> Cell:
        ran.append(name)
        recipe = StopSignals(tmp_path)
        recipe.install()
        os.kill(os.getpid(), signal.SIGTERM)
        return Cell(kind, family, name, "refused", "stopped")

    results = tmp_path / "results.jsonl"
    monkeypatch.setattr(matrix, "run_cell", stopped)
    monkeypatch.setattr(matrix, "measure", lambda *_: iter(()))
    before = signal.getsignal(signal.SIGTERM)
    flags = ["matrix", str(results), "--families", "llama", "--cells", "sft", "dpo"]
    monkeypatch.setattr("sys.argv", flags)
    with pytest.raises(SystemExit) as end:
        matrix.main()

    assert end.value.code == 128 + signal.SIGTERM
    assert ran == ["sft"] and read_cells(results) == [], "a cell that was stopped has no result"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "family"), [(kind, family) for kind in KINDS for family in families(kind)]
)
def test_every_cell_works_or_is_refused_in_one_line(kind: str, family: str, tmp_path: Path) -> None:
    results, rows = tmp_path / "results.jsonl", write_rows(tmp_path)
    run_family(kind, family, list(CELLS[kind]), results, tmp_path / "models", rows=rows)
    wrong = [cell for cell in read_cells(results) if cell.state not in ("works", "refused")]
    assert not wrong, "\n".join(f"{cell.name}: {cell.state}: {cell.reason}" for cell in wrong)
