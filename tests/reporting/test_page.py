"""The report page: it shows what the runs wrote, as text, and names bad input."""

import base64
import hashlib
import json
import math
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hfstack.errors import CheckpointError, DataError
from hfstack.reporting import page
from hfstack.reporting.runs import Sample, find_runs, load_runs, read_history, read_samples

ATTACK = '<script>alert("x")</script><img src=x onerror=alert(1)>'
VOID = {"meta", "input", "img", "br"}


def write_run(folder: Path, recipe: str = "pretrain_clm", **changes: Any) -> Path:
    """Write a run.json as `Run` would."""
    record = {
        "schema": 1,
        "recipe": recipe,
        "status": "finished",
        "error": None,
        "command": f"recipes/{recipe}.py --output_dir {folder.name}",
        "output_dir": str(folder),
        "commit": "0123456789abcdef",
        "versions": {"torch": "2.13.0"},
        "python": "3.11.7",
        "hardware": {
            "cpu": "A CPU",
            "cores": 2,
            "memory_gib": 23.4,
            "device": "cpu",
            "accelerators": [],
        },
        "world_size": 1,
        "started": "2026-01-31T12:00:00+00:00",
        "ended": "2026-01-31T12:01:00+00:00",
        "duration_s": 60.0,
        "config_hash": "ab" * 16,
        "settings": {},
        "data": [],
        "parents": [],
        "metrics": {},
        "tables": {},
        "artifacts": {},
        "restarts": [],
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    return folder


def write_training(folder: Path, history: list[dict[str, Any]], **changes: Any) -> Path:
    """Write a run with a Trainer's log."""
    artifacts = {"trainer_state": "trainer_state.json"} | changes.pop("artifacts", {})
    write_run(folder, artifacts=artifacts, **changes)
    (folder / "trainer_state.json").write_text(
        json.dumps({"log_history": history}), encoding="utf-8"
    )
    return folder


def curve(steps: int = 60) -> list[dict[str, Any]]:
    """A log as in pretraining: training entries, and an evaluation every 20th step."""
    entries: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 1.5 + 4 / step**0.5
        entries.append(
            {
                "step": step,
                "epoch": 0.1,
                "loss": loss,
                "learning_rate": 1e-3 / step,
                "tokens_per_s": 9e3,
            }
        )
        if step % 20 == 0:
            entries.append(
                {"step": step, "epoch": 0.1, "eval_loss": loss + 0.1, "bits_per_byte": loss / 2.4}
            )
    return entries


def write_samples(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def render(*folders: Path, title: str = "story") -> str:
    reports = load_runs([str(folder) for folder in folders])
    return page.render_page(reports, title=title, made=datetime(2026, 2, 1, tzinfo=UTC))


class Page(HTMLParser):
    """A parsed page: fails on an element that is closed out of turn or left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [
            attributes
            for _, attributes in self.elements
            if name in (attributes.get("class") or "").split()
        ]

    @property
    def text(self) -> str:
        return "".join(self.texts)


def chart_data(text: str) -> dict[str, Any]:
    block = re.search(
        r'<script type="application/json" id="chart-data">(.*?)</script>', text, re.DOTALL
    )
    assert block
    return json.loads(block[1])


def lines_of(text: str) -> dict[str, list[list[Any]]]:
    """The embedded curves of the first chart: label -> [steps, values]."""
    first = next(iter(chart_data(text).values()))
    return {line["label"]: [line["x"], line["y"]] for line in first["series"]}


# ---- the page


@pytest.mark.parametrize(
    ("recipe", "metrics", "first", "second"),
    [
        (
            "rloo",
            {
                "start_reward": 0.1,
                "eval_loss": 4e-9,
                "eval_kl_per_completion": 3.5,
                "eval_reward": 1.75,
            },
            "1.75",
            "3.5",
        ),
        ("win_rate", {"win_rate_low": 0.679, "prompts": 400, "win_rate": 0.725}, "72.5", "400"),
        (
            "win_rate",
            {"win_rate": 0.725, "win_rate_low": 0.679, "win_rate_high": 0.766, "prompts": 400},
            "72.5",
            "67.9 to 76.6",
        ),
    ],
)
def test_a_stage_shows_the_metrics_of_its_purpose(
    tmp_path: Path, recipe: str, metrics, first: str, second: str
) -> None:
    folder = write_training(tmp_path / recipe, curve(), metrics=metrics, recipe=recipe)
    card = render(folder).partition('<ol class="chain"')[2].partition("</ol>")[0]
    found = re.search(r'"value">([^<]*)<.*"second">([^<]*)<', card)
    assert found and found[1].startswith(first) and second in found[2]


def test_page_is_well_formed_and_loads_nothing(tmp_path: Path) -> None:
    """Elements are closed, ids unique, links internal; only the page's script may run."""
    folder = write_training(tmp_path / "pretrain", curve(), metrics={"bits_per_byte": 0.7})
    text = render(folder)
    parsed = Page(text)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [
        a[key] or ""
        for _, a in parsed.elements
        for key in ("src", "href", "data", "action")
        if key in a
    ]
    assert links
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert not {name for name, _ in parsed.elements} & {
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
    }
    assert not re.search(r"https?://|url\(|@import", text)
    policy = (
        next(
            a["content"]
            for _, a in parsed.elements
            if a.get("http-equiv") == "Content-Security-Policy"
        )
        or ""
    )
    script = text.rsplit("<script>", 1)[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_text_of_runs_is_never_markup(tmp_path: Path) -> None:
    """What a model, a dataset or a setting holds is shown as it is and never runs."""
    source = {
        "role": ATTACK,
        "path": ATTACK,
        "files": [{"path": ATTACK, "bytes": 1, "blake2b": ATTACK}],
        "rows": 1,
    }
    folder = write_training(
        tmp_path / "pretrain",
        [{"step": step, "loss": 2.0, ATTACK: step} for step in (1, 2)],
        recipe="x<b>",
        status="failed",
        error=ATTACK,
        command=ATTACK,
        commit=ATTACK,
        versions={ATTACK: ATTACK},
        settings={ATTACK: {ATTACK: ATTACK, "datasets": [{"path": ATTACK}]}},
        data=[source],
        metrics={ATTACK: 1.0},
        tables={ATTACK: {"columns": [ATTACK, "n"], "rows": [[ATTACK, 1]]}},
        artifacts={"samples": "samples.jsonl", ATTACK: "p.svg"},
    )
    write_samples(
        folder / "samples.jsonl", [{"step": 1, "prompt": ATTACK, "completion": "</p>" + ATTACK}]
    )
    (folder / "p.svg").write_text(f'<svg xmlns="http://www.w3.org/2000/svg">{ATTACK}</svg>')
    text = render(folder, title=ATTACK)
    parsed = Page(text)
    assert [name for name, _ in parsed.elements].count("script") == 2
    assert "<script>alert" not in text
    assert not any(key.startswith("on") for _, attributes in parsed.elements for key in attributes)
    assert parsed.text.count(ATTACK) >= 12
    images = [attributes for name, attributes in parsed.elements if name == "img"]
    assert len(images) == 1
    assert (images[0]["src"] or "").startswith("data:image/svg+xml;base64,")


def test_curves_are_the_logged_values(tmp_path: Path) -> None:
    """The embedded data equals the log; numbers beside an eval_ value are held out."""
    history = curve()
    text = render(write_training(tmp_path / "pretrain", history))
    assert lines_of(text) == {
        "training": [list(range(1, 61)), [entry["loss"] for entry in history if "loss" in entry]],
        "held out": [
            [20, 40, 60],
            [entry["eval_loss"] for entry in history if "eval_loss" in entry],
        ],
    }
    bits = list(chart_data(text).values())[1]["series"]
    assert [line["label"] for line in bits] == ["held out"]
    assert bits[0]["y"] == [entry["bits_per_byte"] for entry in history if "bits_per_byte" in entry]
    titles = re.findall(r"<h4>(.*?)</h4><", text)
    assert titles[:4] == ["Loss", "Bits per byte", "Learning rate", "Throughput"]


def test_a_restart_is_marked_and_no_step_comes_twice(tmp_path: Path) -> None:
    """Steps logged again after going back to a checkpoint appear once, the last value."""
    history = [{"step": step, "loss": 9.0} for step in (10, 20, 30, 40)]
    history += [{"step": step, "loss": 1.0} for step in (30, 40, 50)]
    folder = write_training(
        tmp_path / "pretrain", history, restarts=[{"step": 20, "time": "2026-01-31T12:00:30+00:00"}]
    )
    text = render(folder)
    assert lines_of(text) == {"training": [[10, 20, 30, 40, 50], [9.0, 9.0, 1.0, 1.0, 1.0]]}
    assert {mark["data-step"] for mark in Page(text).of_class("restart")} == {"20"}
    assert "continued from step 20" in Page(text).text


def test_values_that_are_not_finite_break_the_line_and_are_named(tmp_path: Path) -> None:
    history = [
        {"step": step, "loss": math.nan if step == 3 else 2.0 - step / 10} for step in range(1, 6)
    ]
    text = render(write_training(tmp_path / "pretrain", history))
    assert lines_of(text)["training"][1] == [1.9, 1.8, None, 1.6, 1.5]
    line = next(a["d"] or "" for a in Page(text).of_class("line"))
    assert line.count("M") == 2
    assert "NaN" not in line
    assert "loss was not a finite number at 1 of 5 logged steps, first at step 3" in Page(text).text


def test_runs_of_one_recipe_share_charts(tmp_path: Path) -> None:
    """Two runs share charts, with a legend, a comparison and the settings that differ."""
    for name, rate in (("llama", 0.002), ("gru", 0.001)):
        settings = {"TrainingArguments": {"learning_rate": rate, "seed": 0, "output_dir": name}}
        write_training(tmp_path / name, curve(), settings=settings, metrics={"bits_per_byte": rate})
    text = render(tmp_path)
    parsed = Page(text)
    labels = [line["label"] for line in next(iter(chart_data(text).values()))["series"]]
    assert sorted(labels) == ["gru", "gru, held out", "llama", "llama, held out"]
    assert len(parsed.of_class("legend")) == 1
    assert "settings that differ" in parsed.text
    differing = text.split("settings that differ")[1].split("</table>")[0]
    assert "learning_rate" in differing
    assert "seed" not in differing
    assert "output_dir" not in differing


def test_samples_show_every_step_of_every_prompt(tmp_path: Path) -> None:
    """Chinese and English alike; of a step that was sampled twice the last counts."""
    rows = [
        {"step": step, "prompt": "从前有", "completion": f"一只狐狸{step}"} for step in (0, 10, 20)
    ]
    rows += [{"step": 20, "prompt": "从前有", "completion": "一个新故事"}]
    folder = write_training(
        tmp_path / "pretrain", curve(20), artifacts={"samples": "samples.jsonl"}
    )
    write_samples(folder / "samples.jsonl", rows)
    text = render(folder)
    parsed = Page(text)
    assert parsed.of_class("samples")[0]["data-steps"] == "0,10,20"
    stories = text.split('class="stories"')[1].split("</article>")[0]
    assert re.findall(r"</b>(.*?)</p>", stories) == ["一只狐狸0", "一只狐狸10", "一个新故事"]


def test_what_is_not_finished_is_said(tmp_path: Path) -> None:
    """A failed run shows its reason, a running one what is missing; the page is made."""
    write_run(tmp_path / "a", "clean", status="failed", error="DataError: raw.jsonl, line 3")
    write_run(tmp_path / "b", status="preempted", started="2026-01-31T13:00:00+00:00")
    folder = write_run(
        tmp_path / "c",
        "sft",
        status="running",
        ended=None,
        duration_s=None,
        started="2026-01-31T14:00:00+00:00",
        artifacts={
            "samples": "samples.jsonl",
            "trainer_state": "trainer_state.json",
            "curve": "curve.png",
        },
    )
    (folder / "samples.jsonl").write_text(
        '{"step": 1, "prompt": "a", "completion": "b"}\n{"step": 2, "pro'
    )
    (folder / "trainer_state.json").write_text('{"log_hist')
    text = Page(render(tmp_path)).text
    assert "a failed: DataError: raw.jsonl, line 3" in text
    assert "b was stopped before its end" in text
    assert "c has not ended" in text
    assert "curve.png (curve) is listed but not there yet" in text
    assert "trainer_state cannot be read yet" in text
    assert "1 run" not in text
    assert "3 runs, 0 finished" in text


def test_tables_pictures_and_fillings_come_inline(tmp_path: Path) -> None:
    """A table is shown by its name, a picture by its ending: new ones need no code."""
    table = {
        "columns": ["reason", "documents", "share"],
        "rows": [["too_short", 30, 0.25], ["exact", 10, None]],
    }
    folder = write_run(
        tmp_path / "x",
        "reward_model",
        tables={"dropped_documents": table},
        artifacts={
            "reward_by_kl": "a.png",
            "fillings": "fillings.jsonl",
            "train": "not-there.jsonl",
        },
    )
    (folder / "a.png").write_bytes(b"\x89PNG")
    row = {"text": "a [MASK]", "mask": 0, "position": 2, "candidates": [["fox", 0.5]]}
    (folder / "fillings.jsonl").write_text(json.dumps(row) + "\n")
    parsed = Page(render(folder))
    assert [a.get("alt") for name, a in parsed.elements if name == "img"] == ["Reward by KL"]
    for expected in ("Dropped documents", "too_short", "25.0 %", "Fillings", "fox 50.0 %"):
        assert expected in parsed.text
    assert [a["style"] for a in parsed.of_class("bar")] == ["--share:100.0%", "--share:33.3%"]


def test_data_is_listed_once_with_its_readers(tmp_path: Path) -> None:
    """One row for one content; a path that held two contents is a warning."""

    def source(role: str, digest: str) -> dict[str, Any]:
        return {
            "role": role,
            "path": "d.jsonl",
            "files": [{"path": "d.jsonl", "bytes": 2048, "blake2b": digest}],
        }

    write_run(tmp_path / "a", "clean", data=[source("train", "1" * 32)])
    write_run(tmp_path / "b", "tokenizer", data=[source("train", "1" * 32)])
    text = Page(render(tmp_path)).text
    assert "a (train), b (train)" in text
    assert "2 KiB" in text
    assert "was not the same file" not in text
    write_run(tmp_path / "c", "evaluate_lm", data=[source("eval", "2" * 32)])
    assert "d.jsonl was not the same file for all runs that read it" in Page(render(tmp_path)).text


def test_a_spike_survives_the_thinning_of_a_long_curve(tmp_path: Path) -> None:
    """20,000 points become under 4,000 coordinates, one spike kept; the data has all."""
    history = [
        {"step": step, "grad_norm": 50.0 if step == 7777 else 1.0} for step in range(1, 20001)
    ]
    text = render(write_training(tmp_path / "pretrain", history))
    raw = Page(text).of_class("raw")[0]["d"] or ""
    heights = [float(pair.split()[1]) for pair in re.split("[ML]", raw)[1:]]
    assert len(heights) < 4000
    assert min(heights) == 0.0
    assert len(next(iter(lines_of(text).values()))[0]) == 20000


def test_colours_can_be_read() -> None:
    """Texts and series have a contrast of 4.5 in both themes (WCAG 2.2, 1.4.3)."""

    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    style = Path(page.__file__).with_name("page.css").read_text(encoding="utf-8")
    colors = dict(re.findall(r"--([\w-]+): light-dark\((.*?)\)", style))
    names = [f"c{index}" for index in range(8)] + ["ink", "soft", "accent", "good", "bad", "wait"]
    for theme in (0, 1):
        for background in ("paper", "raised"):
            ground = luminance(colors[background].split(", ")[theme])
            for name in names:
                front = luminance(colors[name].split(", ")[theme])
                ratio = (max(front, ground) + 0.05) / (min(front, ground) + 0.05)
                assert ratio >= 4.5, f"{name} on {background} in theme {theme}: {ratio:.2f}"


# ---- reading runs


def test_runs_are_found_ordered_and_labelled(tmp_path: Path) -> None:
    """Two levels down, by start time, each once; no reports, nothing inside a run."""
    late = write_run(tmp_path / "x" / "pretrain", started="2026-01-31T15:00:00+00:00")
    early = write_run(tmp_path / "y" / "pretrain", started="2026-01-31T11:00:00+00:00")
    write_run(tmp_path / "report", "report")
    write_run(late / "checkpoint-1")
    reports = load_runs([str(tmp_path), str(late)])
    assert [report.directory for report in reports] == [early, late]
    assert [report.label for report in reports] == ["y/pretrain", "x/pretrain"]
    assert page.default_title(reports[:1]) == "y"
    assert page.default_title(reports) == tmp_path.name
    assert len(find_runs(tmp_path)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 1, "recipe": "cle', "not a complete run record"),
        ("[]", r"it is \[\], not a mapping; it was edited or damaged"),
        ("[" * 9999, "not a complete run record: it is nested too deeply"),
        ('{"schema": 1, "schema": 1}', "the key 'schema' occurs twice"),
        ('{"schema": 1}', "not a complete run record: recipe is missing"),
        (None, "no run.json in it or 2 levels down"),
    ],
)
def test_a_run_without_a_whole_record_is_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_runs([str(tmp_path)])
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"eval_loss": "1.5"}}, r"metrics.eval_loss is '1.5', not a number"),
        ({"metrics": {"eval_loss": 10**400}}, "metrics.eval_loss is 1000"),
        ({"status": "done"}, "status is 'done', not 'running' or 'finished'"),
        ({"started": "yesterday"}, "started is 'yesterday', not an ISO time"),
        ({"command": "a\0b"}, r"command holds 'a.x00b', which is no text"),
        ({"parents": [3]}, r"parents\[0\] is 3, not a text"),
        ({"restarts": [{"time": "x"}]}, r"restarts\[0\].step is missing"),
        ({"hardware": {"cores": "many"}}, "hardware.cores is 'many', not a whole number"),
        ({"tables": {"t": {"columns": ["a"], "rows": [[1, 2]]}}}, "table t is not"),
        ({"artifacts": ["samples.jsonl"]}, r"artifacts is \[\"samples.jsonl\"\], not a mapping"),
        (
            {"data": [{"path": "d", "files": [{"path": "d"}]}]},
            r"data\[0\].files\[0\].blake2b is missing",
        ),
    ],
)
def test_a_record_of_another_shape_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_run(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_runs([str(tmp_path)])


@pytest.mark.parametrize("name", ["trainer_state", "samples", "completions", "fillings", "plot"])
def test_a_finished_run_must_have_its_artifacts(tmp_path: Path, name: str) -> None:
    path = f"{name}.png" if name == "plot" else f"{name}.json"
    write_run(tmp_path, artifacts={name: path})
    with pytest.raises(
        DataError, match=rf"{path} is listed in run.json as {name} but is not there"
    ):
        load_runs([str(tmp_path)])


def test_an_artifact_outside_of_the_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.svg").write_text("<svg/>")
    write_run(tmp_path / "run", artifacts={"picture": "../secret.svg"})
    with pytest.raises(DataError, match="outside of the run's directory"):
        load_runs([str(tmp_path / "run")])


def test_samples_are_completions_or_answers_and_prompts_may_be_conversations(
    tmp_path: Path,
) -> None:
    path = tmp_path / "answers.jsonl"
    turns = [{"role": "user", "content": "Hello"}, {"role": "user", "content": "there"}]
    write_samples(path, [{"prompt": turns, "answer": "Hi"}, {"prompt": "a", "completion": "b"}])
    found = read_samples(path, may_be_incomplete=False)
    assert found == [Sample(None, "Hello\nthere", "Hi"), Sample(None, "a", "b")]


def test_a_malformed_artifact_is_named_with_its_line(tmp_path: Path) -> None:
    samples = tmp_path / "samples.jsonl"
    whole = {"step": 1, "prompt": "a", "completion": "b"}
    write_samples(samples, [whole, whole | {"step": "2"}])
    with pytest.raises(DataError, match=r"samples.jsonl, line 2: not a sample"):
        read_samples(samples, may_be_incomplete=False)
    state = tmp_path / "trainer_state.json"
    state.write_text('{"log_history": [{"loss": 1.0}]}')
    with pytest.raises(DataError, match=r"log_history\[0\].step is None, not a step"):
        read_history(state)


def test_results_come_first_with_intervals_as_ranges(tmp_path: Path) -> None:
    metrics = {"eval_loss": 0.7, "eval_accuracy": 0.52, "eval_baseline_accuracy": 0.5}
    metrics |= {"eval_accuracy_low": 0.45, "eval_accuracy_high": 0.59}
    artifacts = {"trainer_state": "trainer_state.json", "samples": "samples.jsonl"}
    folder = write_training(
        tmp_path / "mine", curve(), recipe="classify", metrics=metrics, artifacts=artifacts
    )
    write_samples(folder / "samples.jsonl", [{"step": 1, "prompt": "a", "completion": "b"}])
    text = render(folder)
    places = [text.index(f'<section class="part" id="{name}"') for name in PARTS]
    assert places == sorted(places)
    results = text[places[0] : places[1]]
    assert (
        '<dd class="chance">52.0<span class="unit">%</span><span class="range">45.0 to 59.0<'
        in (results)
    ), "an interval that reaches the commonest class looks like it"
    assert "accuracy_low" not in results and "nats/row" in results
    assert '<h3>mine<span class="run">classify</span></h3>' in results, "called by its folder"


PARTS = ("results", "samples", "curves")


def test_of_a_policy_the_reward_comes_first_and_a_share_fills_its_axis(tmp_path: Path) -> None:
    names = ("loss", "kl", "ended_share", "entropy", "completions/mean_length", "reward")
    history = [{"step": step, **dict.fromkeys(names, 0.5 + step / 100)} for step in range(1, 9)]
    text = render(write_training(tmp_path / "ppo", history, recipe="ppo"))
    titles = re.findall(r"<figcaption><h4>([^<]*)</h4>(?:<span class=\"unit\">([^<]*))?", text)
    wanted = [("Reward", ""), ("KL", "nats per token"), ("Length", "tokens")]
    assert titles[:4] == [*wanted, ("Entropy", "nats per token")]
    assert ("Loss", "") in titles, "a surrogate is counted in nothing"
    shares = text[text.index("<h4>Ended share</h4>") :]
    assert 'data-y="0.0,1.0"' in shares or 'data-y="0,1"' in shares
