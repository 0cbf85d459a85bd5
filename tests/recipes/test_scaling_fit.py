"""The fit recipe on tables and on ladders: numbers in run.json, pictures that are whole, and one
line a mistake.
"""

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.reporting.page import render_page
from hfstack.reporting.runs import load_runs
from hfstack.reporting.scaling.read import load_rungs
from hfstack.runs.record import read_run
from hfstack.scaling.parametric import Law

LAWS = {"llama": Law(1.6, 120.0, 900.0, 0.45, 0.42), "gru": Law(1.8, 150.0, 900.0, 0.43, 0.42)}


def rows(law: Law, *, seed: int = 0, noise: float = 0.002) -> list[dict[str, float]]:
    """Four sizes at three computes."""
    rng = np.random.default_rng(seed)
    sizes, computes = np.tile([6e4, 1.5e5, 4e5, 1e6], 3), np.repeat([1e11, 4e11, 1.6e12], 4)
    tokens = computes / 6 / sizes
    losses = [
        law.loss(*point) * np.exp(noise * rng.standard_normal())
        for point in zip(sizes, tokens, strict=True)
    ]
    return [
        {"N": n, "D": d, "loss": loss} for n, d, loss in zip(sizes, tokens, losses, strict=True)
    ]


def write_table(path: Path, table: list[dict], names: dict[str, str] | None = None) -> Path:
    names = names or {}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [names.get(name, name) for name in table[0]])
        writer.writeheader()
        writer.writerows(
            {names.get(name, name): value for name, value in row.items()} for row in table
        )
    return path


def write_ladder(folder: Path, law: Law, family: str, *, status: str = "finished") -> Path:
    """What scaling_ladder leaves, as far as a fit reads it."""
    record = {
        "command": "",
        "commit": None,
        "versions": {},
        "python": "",
        "hardware": {},
        "world_size": 1,
        "started": "2026-01-01T00:00:00+00:00",
        "config_hash": "",
        "schema": 1,
        "status": "finished",
    }
    artifacts = {}
    for place, row in enumerate(rows(law)):
        own = folder / "rungs" / f"{family}-{place}"
        own.mkdir(parents=True)
        metrics = {
            "parameters": row["N"],
            "parameters_non_embedding": row["N"] / 2,
            "tokens": row["D"],
            "unique_tokens": 1e9,
            "flops": 8 * row["N"] * row["D"],
            "flops_6nd": 6 * row["N"] * row["D"],
            "flops_kaplan": 3 * row["N"] * row["D"],
            "eval_loss": row["loss"],
        }
        last = status if place == 11 else "finished"
        values = {
            **record,
            "recipe": "scaling_ladder",
            "output_dir": str(own),
            "metrics": metrics,
            "status": last,
            "settings": {"Rung": {"family": family}},
        }
        (own / "run.json").write_text(json.dumps(values))
        artifacts[f"rung {family}-{place}"] = f"rungs/{family}-{place}/run.json"
    whole = {
        **record,
        "recipe": "scaling_ladder",
        "output_dir": str(folder),
        "settings": {},
        "artifacts": artifacts,
    }
    (folder / "run.json").write_text(json.dumps(whole))
    return folder


def test_a_table(run_recipe, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", rows(LAWS["llama"]))
    metrics = run_recipe(
        "scaling_fit", "--datasets", table, "--draws", 60, "--output_dir", tmp_path / "fit"
    )
    for name in ("E", "A", "B", "alpha", "beta"):
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    assert metrics["alpha"] == pytest.approx(0.45, abs=0.1) and metrics["C_exponent"] < 0
    assert metrics["held_out_error"] < 0.03 and metrics["rungs"] == 12
    record = read_run(tmp_path / "fit")
    assert record.metrics == metrics and record.data[0]["rows"] == 12
    for name, path in record.artifacts.items():
        if path.endswith(".svg"):
            picture = ElementTree.parse(tmp_path / "fit" / path).getroot()
            texts = " ".join(element.text or "" for element in picture.iter())
            assert "nan" not in texts.lower() and len(list(picture.iter())) > 20, name
    assert {"loss", "allocation", "residuals", "intervals"} <= set(record.artifacts)
    draws = (tmp_path / "fit" / "bootstrap.csv").read_text().splitlines()
    assert draws[0] == "family,E,A,B,alpha,beta" and len(draws) == 61
    page = render_page(load_runs([str(tmp_path / "fit")]), title="t", made=datetime.now(UTC))
    assert "Held-out rungs" in page and page.count("data:image/svg+xml") >= 4


def test_other_column_names_families_and_excluded_rows(run_recipe, tmp_path: Path) -> None:
    mixed = [{**row, "kind": family, "out": 0} for family, law in LAWS.items() for row in rows(law)]
    mixed.append({"N": 1.0, "D": 1.0, "loss": 99.0, "kind": "gru", "out": 1})
    table = write_table(tmp_path / "t.csv", mixed, {"N": "size", "D": "seen", "loss": "nll"})
    metrics = run_recipe(
        "scaling_fit",
        "--datasets",
        table,
        "--parameters_column",
        "size",
        "--tokens_column",
        "seen",
        "--loss_column",
        "nll",
        "--family_column",
        "kind",
        "--excluded_column",
        "out",
        "--draws",
        40,
        "--output_dir",
        tmp_path / "fit",
    )
    assert metrics["llama_rungs"] == metrics["gru_rungs"] == 12
    assert metrics["llama_E"] < metrics["gru_E"]
    picture = (tmp_path / "fit" / "loss.svg").read_text()
    assert ">llama<" in picture and ">gru<" in picture


def test_ladders(run_recipe, tmp_path: Path) -> None:
    write_ladder(tmp_path / "runs" / "a", LAWS["llama"], "llama")
    write_ladder(tmp_path / "runs" / "b", LAWS["gru"], "gru", status="preempted")
    metrics = run_recipe(
        "scaling_fit", "--runs", tmp_path / "runs", "--draws", 40, "--output_dir", tmp_path / "fit"
    )
    assert (metrics["llama_rungs"], metrics["gru_rungs"]) == (12, 11)
    assert len(read_run(tmp_path / "fit").parents) == 24
    kaplan = run_recipe(
        "scaling_fit",
        "--runs",
        tmp_path / "runs/a",
        "--counted",
        "kaplan",
        "--draws",
        0,
        "--forms",
        "kaplan",
        "--output_dir",
        tmp_path / "k",
    )
    assert "E" not in kaplan and kaplan["C_exponent"] < 0


@pytest.mark.shared
def test_the_published_table(run_recipe, shared_data: Path, tmp_path: Path) -> None:
    metrics = run_recipe(
        "scaling_fit",
        "--datasets",
        shared_data / "scaling" / "chinchilla_epoch_extracted.csv",
        "--parameters_column",
        "N_params",
        "--tokens_column",
        "D_tokens",
        "--excluded_column",
        "excluded_in_paper",
        "--draws",
        20,
        "--output_dir",
        tmp_path / "fit",
    )
    assert metrics["rungs"] == 240
    expected = {"E": 1.8172, "alpha": 0.3473, "beta": 0.3672}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=2e-3)
    assert (metrics["A"], metrics["B"]) == pytest.approx((477.8, 2143), rel=0.02)


def rising() -> list[dict[str, float]]:
    table = rows(LAWS["llama"])
    losses = sorted(row["loss"] for row in table)
    return [
        {**row, "loss": loss}
        for row, loss in zip(sorted(table, key=lambda r: (r["N"], r["D"])), losses, strict=True)
    ]


@pytest.mark.parametrize(
    ("table", "flags", "message"),
    [
        (
            rows(LAWS["llama"])[:4],
            ["--forms", "parametric"],
            "t: 4 rungs for the 5 parameters of E",
        ),
        (rising(), [], "t: losses rise with the number of parameters"),
        (
            [{"size": 1.0, "D": 2.0, "loss": 3.0}],
            [],
            r"t.csv has no column 'N'; found: size, D, loss; name the columns",
        ),
        (rows(LAWS["llama"])[:1], [], "t: 1 rung: a scaling law needs at least 2"),
        (rows(LAWS["llama"]), ["--family_column", "kind"], "t.csv has no column 'kind'"),
        (rows(LAWS["llama"]), ["--forms", "repeated"], "t: no rung read its data more than once"),
    ],
)
def test_mistakes_in_a_table(
    table, flags: list[str], message: str, run_recipe, tmp_path: Path
) -> None:
    path = write_table(tmp_path / "t.csv", table)
    with pytest.raises(DataError, match=message) as refusal:
        run_recipe(
            "scaling_fit",
            "--datasets",
            path,
            "--draws",
            0,
            "--output_dir",
            tmp_path / "fit",
            *flags,
        )
    assert "\n" not in str(refusal.value)


def test_mistakes_in_runs(run_recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to fit: give --runs"):
        run_recipe("scaling_fit", "--output_dir", tmp_path / "fit")
    with pytest.raises(CheckpointError, match="no such directory"):
        run_recipe("scaling_fit", "--runs", tmp_path / "none", "--output_dir", tmp_path / "fit")
    with pytest.raises(
        ConfigError, match="--forms chinchilla: no such form; choose of kaplan, envelope"
    ):
        run_recipe(
            "scaling_fit",
            "--runs",
            tmp_path,
            "--forms",
            "chinchilla",
            "--output_dir",
            tmp_path / "fit",
        )
    folder = write_ladder(tmp_path / "a", LAWS["llama"], "llama")
    path = folder / "rungs/llama-3/run.json"
    values = json.loads(path.read_text())
    del values["metrics"]["tokens"]
    path.write_text(json.dumps(values))
    with pytest.raises(
        DataError, match=r"llama-3/run.json \(scaling_ladder\) has no tokens: give the ladders"
    ):
        run_recipe("scaling_fit", "--runs", folder, "--output_dir", tmp_path / "fit")


def write_pretraining(folder: Path, law: Law, *, place: int, **changes: object) -> Path:
    """A run of pretrain_clm as far as a fit reads it: one of the rungs, with text, tokens and a
    start of its own.
    """
    own = write_ladder(folder, law, "llama") / "rungs" / f"llama-{place}" / "run.json"
    values = json.loads(own.read_text()) | {"recipe": "pretrain_clm"}
    what = {
        "start": "llama-1m.json",
        "train": "a1",
        "eval": "b1",
        "block_size": 128,
        "tokens_per_byte": 0.25,
    } | changes
    values["settings"] = {
        "ModelConfig": {"model_name_or_path": what["start"]},
        "PretrainArgs": {"block_size": what["block_size"]},
    }
    values["data"] = [
        {
            "role": role,
            "path": "x.jsonl",
            "files": [{"path": "x.jsonl", "bytes": 1, "blake2b": what[role]}],
            "rows": 9,
        }
        for role in ("train", "eval")
    ]
    values["metrics"]["bits_per_byte"] = (
        values["metrics"]["eval_loss"] * what["tokens_per_byte"] / np.log(2)
    )
    own.write_text(json.dumps(values))
    return own.parent


def test_runs_of_pretrain_clm(run_recipe, tmp_path: Path) -> None:
    runs = [
        write_pretraining(tmp_path / str(place), LAWS["llama"], place=place) for place in range(12)
    ]
    metrics = run_recipe(
        "scaling_fit", "--runs", *runs, "--draws", 0, "--output_dir", tmp_path / "fit"
    )
    assert metrics["rungs"] == 12 and metrics["alpha"] == pytest.approx(0.45, abs=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval": "b2"}, "was measured on other held-out text than"),
        ({"block_size": 256}, "was measured on another block size than"),
        (
            {"tokens_per_byte": 0.4},
            "was measured on other tokens than .*, or by --loss bits_per_byte",
        ),
        ({"start": "runs/model"}, "continued from runs/model, so its tokens are not all"),
    ],
)
def test_losses_of_different_things(
    changes: dict[str, object], message: str, run_recipe, tmp_path: Path
) -> None:
    runs = [
        write_pretraining(tmp_path / str(place), LAWS["llama"], place=place) for place in range(2)
    ]
    runs.append(write_pretraining(tmp_path / "other", LAWS["llama"], place=2, **changes))
    with pytest.raises(DataError, match=message) as refusal:
        run_recipe("scaling_fit", "--runs", *runs, "--draws", 0, "--output_dir", tmp_path / "fit")
    assert "\n" not in str(refusal.value)


def test_other_training_text_is_said_and_fitted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [
        write_pretraining(tmp_path / str(place), LAWS["llama"], place=place, train=f"a{place}")
        for place in range(2)
    ]
    assert len(load_rungs([str(run) for run in runs])["llama"]) == 2
    assert "trained on other text than" in caplog.text and "llama-1" in caplog.text
