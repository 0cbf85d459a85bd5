"""The commands of the docs that read data with a finished model: it gets every row as written."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hfstack.recipe_settings import read_recipe_settings
from hfstack.runs.run import Run
from tests.test_docs_data import FINISHED, ROOT, Rows, commands, data_flags, write_files


class ReadRows(Exception):
    """Ends a recipe where a finished model would get its rows, which are the argument."""


def stop(rows: Any) -> Any:
    raise ReadRows(list(rows))


class FinishedModel:
    """Stands for a model that was trained; `seen` are the texts that it got."""

    config, name_or_path = None, "stub"

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def to(self, device: Any) -> "FinishedModel":
        return self

    def eval(self) -> "FinishedModel":
        return self

    def predictor(self, args: Any, columns: Any, **settings: Any) -> Any:
        def predict(rows: Rows, first_row: int = 1) -> list[dict[str, Any]]:
            self.seen += [{columns[0] or "text": row[columns[0] or "text"]} for row in rows]
            return [{"label": "x"} for _ in rows]

        return predict


def stubs_of(recipe: str, flags: list[str], model: FinishedModel) -> dict[str, Any]:
    """Return what takes the place of a recipe's own functions, so that it needs no model."""
    kind = "reward model" if "runs/reward" in flags else "text classifier"
    info = SimpleNamespace(max_length=8, text_column="text", text_pair_column=None)
    loading = {"load_tokenizer": lambda *_: None, "load_causal_lm": lambda *_: model}
    return {
        "evaluate_lm": loading
        | {
            "context_length": lambda _: 64,
            "require_causal": lambda *_: None,
            "check_training_text": lambda *_, **__: None,
            "score_documents": lambda _, __, texts, **___: stop({"text": one} for one in texts),
        },
        "predict": {"task_of": lambda *_: "stub", "TASKS": {"stub": model.predictor}},
        "explain": {
            "identify_model": lambda *_: SimpleNamespace(kind=kind),
            "load_trained_classifier": lambda _: (model, None, info),
            "explain_text": lambda _, __, ___, text, **____: model.seen.append({"text": text[0]}),
            "load_pair_explainer": lambda *_, **__: lambda *pair, **___: model.seen.append(pair),
            "show": lambda one: one,
            "explanation_page": lambda *_, **__: stop(model.seen),
        },
        "annotate": {"answer_rows": lambda _, rows, *__: stop(rows)},
        "generate": loading
        | {
            "is_masked_lm": lambda _: False,
            "find_prompt_format": lambda *_, **__: SimpleNamespace(kind="plain", reason=""),
            "check_rendering": lambda *_, **__: None,
            "generate_from_texts": lambda _, __, texts, **___: stop(dict.fromkeys(texts)),
        },
        "scaling_fit": {
            "fit_ladder": lambda rungs, **_: stop(
                zip(rungs.parameters, rungs.tokens, rungs.loss, strict=True)
            )
        },
        "search": {
            "load_search_models": lambda *_, **__: (model, None),
            "hash_model": lambda _: "0",
            "build_index": lambda _, rows, *__, **___: stop(rows),
        },
    }[recipe]


def given_to(recipe: str, rows: Rows) -> list[Any]:
    """Return what a finished model has to get of the rows of a file."""
    if recipe == "explain" and "chosen" in rows[0]:
        return [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    if recipe == "generate":
        return [row["prompt"] for row in rows]
    if recipe == "scaling_fit":
        return [tuple(map(float, [*row.values()][:3])) for row in rows]
    if recipe == "predict":
        return [{name: row[name] for name in row if name != "id"} for row in rows]
    return rows


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        pytest.param(*each, id=" ".join([each[0], *data_flags(each[1])]))
        for each in commands()
        if each[0] in FINISHED
    ],
)
def test_a_finished_model_gets_the_rows_of_a_command(
    recipe: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written, held_out = write_files(recipe, flags)
    flags = [*flags, *(["--port", "0"] if recipe == "annotate" else [])]
    path = ROOT / "recipes" / f"{recipe}.py"
    settings = read_recipe_settings(path, flags)
    most = next((one.max_rows for one in settings if hasattr(one, "max_rows")), None)
    written = written[:most]

    model, module = FinishedModel(), sys.modules[f"recipe_{recipe}"]
    monkeypatch.setattr(Run, "record_inputs", lambda *_, **__: None)
    for name, stub in stubs_of(recipe, flags, model).items():
        monkeypatch.setattr(module, name, stub)
    try:
        module.main(*settings)
        found = model.seen
    except ReadRows as read:
        found = read.args[0]
    assert found == given_to(recipe, written or held_out)
