"""The annotate recipe: items from files and from a model, simulated people, one-line mistakes."""

import json
import shutil
from pathlib import Path

import pytest

from hfstack.demo.answers import answers
from hfstack.errors import AlreadyFinished, ConfigError, DataError, Preempted
from hfstack.feedback.export import read_stores
from hfstack.feedback.server import bind
from hfstack.feedback.store import Store, open_store
from hfstack.runs.record import read_run
from tests.tiny_chat import save_tiny_chat

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def annotate(run_recipe, tmp_path: Path):
    """Call the recipe from its YAML; the demo's generator has answered, and rules judge."""
    data = tmp_path / "answers.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for index in range(8):
            row, different = answers(3, index, count=3)
            file.write(json.dumps({"prompt": row["prompt"], "completions": different}) + "\n")

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "config": ROOT / "recipes" / "annotate.yaml",
            "datasets": data,
            "simulate": "true",
            "port": 0,
            "output_dir": tmp_path / "run",
        } | changes
        flags: list[object] = []
        for key, value in settings.items():
            flags += [f"--{key}", *(value if isinstance(value, list) else [value])]
        return run_recipe("annotate", *flags)

    return call


def test_two_simulated_people_judge_every_pair(annotate, tmp_path: Path, capsys) -> None:
    metrics = annotate(annotators=["ann", "ben"], overlap=2, annotator_noise=0)
    assert metrics["judgements"] == metrics["judgements_wanted"] == 16
    assert metrics["rows"] == metrics["items"] == 8
    printed = capsys.readouterr().out
    assert "ann: http://127.0.0.1:" in printed and "lead: http://127.0.0.1:" in printed
    record = read_run(tmp_path / "run")
    assert record.status == "finished" and record.artifacts["feedback"] == "feedback.sqlite"
    kind, judged = read_stores([str(tmp_path / "run")])
    assert kind == "pairs" and all(len(one.in_turn()) == 2 for one in judged)
    assert all(one.votes[0].verdict == one.votes[1].verdict for one in judged), (
        "people who never err agree, whatever side an answer stood on"
    )
    with pytest.raises(AlreadyFinished):
        annotate(annotators=["ann", "ben"], overlap=2, annotator_noise=0)


@pytest.mark.parametrize("kind", ["ranking", "thumbs", "ratings", "correction"])
def test_every_other_kind_is_judged_from_the_same_file(annotate, tmp_path: Path, kind: str) -> None:
    metrics = annotate(kind=kind, max_items=4)
    assert metrics["judgements"] == metrics["items"] == 4
    assert read_stores([str(tmp_path / "run")])[0] == kind


def test_a_model_answers_and_equal_answers_are_dropped(
    annotate, tiny_llama: Path, tmp_path: Path
) -> None:
    model = save_tiny_chat(tiny_llama, tmp_path / "model")
    prompts = tmp_path / "prompts.jsonl"
    asked = [{"prompt": answers(3, index)[0]["prompt"][:40]} for index in range(3)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in asked))
    common = {"model_name_or_path": model, "datasets": prompts, "conversational": "true"}
    common |= {"answers_per_prompt": 2, "max_new_tokens": 4}
    metrics = annotate(**common, output_dir=tmp_path / "sampled")
    assert metrics["rows"] == metrics["items"] == 3 and metrics["equal_answers"] == 0
    store = open_store(tmp_path / "sampled" / "feedback.sqlite")
    assert store.items()[0].answers[0][0]["role"] == "assistant", "turns, as the model learned"
    store.close()
    # at temperature 0 a model writes the same answer twice
    with pytest.raises(DataError, match=r"no items to judge are left: .*'equal_answers': 3"):
        annotate(**common, temperature=0, output_dir=tmp_path / "greedy")


def test_a_project_that_was_interrupted_goes_on_with_its_counts(
    annotate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "hfstack.feedback.simulate.judge_all"
    monkeypatch.setattr(module, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises((KeyboardInterrupt, Preempted)):
        annotate()
    assert read_run(tmp_path / "run").status == "preempted"
    monkeypatch.undo()
    metrics = annotate()
    assert metrics["rows"] == metrics["items"] == metrics["judgements"] == 8


def test_mistakes_end_in_one_line(annotate, tmp_path: Path) -> None:
    def refused(message: str, error: type[Exception] = ConfigError, **changes: object) -> None:
        with pytest.raises(error, match=message):
            annotate(**({"output_dir": tmp_path / "refused"} | changes))
        shutil.rmtree(tmp_path / "refused", ignore_errors=True)

    refused("names 'ann' twice: each person needs a name", annotators=["ann", "ann"])
    refused(r"--overlap 3 asks for more people than --annotators names \(1\)", overlap=3)
    refused("--kind must be one of pairs, ranking", kind="stars")
    refused("--select uncertain needs --reward_models", select="uncertain")
    refused("--gold has no meaning with --kind ratings", kind="ratings", gold="answers.jsonl")
    with bind("127.0.0.1", 0) as sock:
        refused("cannot be used: Address already in use", port=sock.getsockname()[1])

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Say hello.", "completion": "hello"}\n')
    refused("prompt 1 has 1 answer, an item of pairs needs 2", DataError, datasets=rows)
    rows.write_text('{"prompt": "Say hello.", "completions": ["hello", "hello "]}\n')
    refused("no items to judge are left: .*'equal_answers': 1", DataError, datasets=rows)
    rows.write_text('{"question": "Say hello.", "reply": "hello"}\n')
    refused("row 1 has no prompt with an answer; found the columns", DataError, datasets=rows)
    rows.write_text("")
    refused("rows.jsonl", DataError, datasets=rows)

    annotate(output_dir=tmp_path / "first")
    store = tmp_path / "first" / "feedback.sqlite"
    refused("is the store of another project: its kind", DataError, store=store, kind="thumbs")
    served = Store(store)
    served.claim()
    refused("is served by another annotate", DataError, store=store)
    served.close()
