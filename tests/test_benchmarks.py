"""Benchmarks whose code must work before the machine is there that they are for."""

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a benchmark, which imports its sibling."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def call(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"of_{name}", BENCHMARKS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # where dataclasses look for the module of their annotations
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return call


@pytest.fixture
def gpu(load: Callable[[str], ModuleType]) -> ModuleType:
    """benchmarks/gpu.py."""
    return load("gpu")


def test_the_tables_of_published_figures_are_those_of_the_saved_run(
    load: Callable[[str], ModuleType],
) -> None:
    saved = json.loads((BENCHMARKS / "results" / "plan_public.json").read_text(encoding="utf-8"))
    module, found = load("plan_public"), saved["figures"]
    page = (ROOT / "docs" / "recipes" / "plan.md").read_text(encoding="utf-8")
    for table in module.write_tables(found).strip().split("\n\n"):
        assert table in page

    assert [one["name"] for one in found] == [row.name for row in module.rows()]
    errors = sorted(abs(one["error"]) for one in found)
    assert len(errors) >= 20 and errors[len(errors) // 2] < 0.1 and errors[-1] < 0.25
    assert f"{errors[len(errors) // 2]:.1%}, largest {errors[-1]:.1%}" in " ".join(page.split())


def test_a_published_row_is_planned_as_the_saved_run_has_it(
    load: Callable[[str], ModuleType],
) -> None:
    """The cheapest one, so that a change of the plan shows beside the public record."""
    saved = json.loads((BENCHMARKS / "results" / "plan_public.json").read_text(encoding="utf-8"))
    module = load("plan_public")
    row = next(module.rows())
    (was,) = [one for one in saved["figures"] if one["name"] == row.name]
    assert module.compare(row)["planned_gib"] == pytest.approx(was["planned_gib"], rel=0.03)


@pytest.mark.parametrize("part", ["parity", "pretrain", "sft", "plan", "rollouts", "ppo"])
def test_each_part_of_the_gpu_page_runs_on_a_cpu(gpu: ModuleType, part: str) -> None:
    found = gpu.PARTS[part]("cpu", tiny=True)
    assert len({one["what"] for one in found}) == len(found) > 0
    numbers = [value for one in found for name, value in one.items() if name != "what"]
    assert all(math.isfinite(number) for number in numbers)
    # the same device twice
    assert numbers == [0.0] if part == "parity" else all(number > 0 for number in numbers)


def test_a_part_that_fails_says_so_and_the_others_are_shown(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part is a process of its own: here one that ends with 3, and one that takes too long."""
    arguments = argparse.Namespace(device="cpu", tiny=True, folder=tmp_path)
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "part.py"))
    (tmp_path / "part.py").write_text("import sys; sys.exit(3)")
    failed = gpu.run_part("sft", arguments)

    (tmp_path / "part.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(gpu, "LIMIT_S", 0.2)
    late = gpu.run_part("ppo", arguments)

    results = [json.loads(path.read_text()) for path in (failed, late)]
    assert [one["benchmark"] for one in results] == ["gpu_sft", "gpu_ppo"]
    assert all({"commit", "dirty", "versions", "machine"} <= one.keys() for one in results)
    table = gpu.write_table(results)
    assert "error exit code 3" in table and "error it took longer than 0.2 s" in table


def test_without_a_gpu_it_ends_in_one_line(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU is visible to torch"):
        gpu.main()
