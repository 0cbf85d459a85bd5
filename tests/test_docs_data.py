"""The commands of the docs that take data, with their YAML: every row comes out as it went in."""

import gzip
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import datasets
import datasets.config
import pytest
import zstandard

from hfstack.data.sources import DataArgs, iterate_rows, load_splits
from hfstack.errors import HfstackError
from hfstack.recipe_settings import read_recipe_settings
from hfstack.row_counts import RowCounts
from hfstack.tasks.classification.data import LabelArgs, load_labelled
from hfstack.tasks.preferences.data import load_preferences
from hfstack.tasks.preferences.rows import PreferenceArgs
from hfstack.tasks.question_answering.data import read_questions
from hfstack.tasks.retrieval.rows import RowsArgs, load_text_pairs
from hfstack.tasks.rl.prompts import load_prompts
from hfstack.tasks.seq2seq.data import load_sources_and_targets
from hfstack.tasks.sft.columns import Columns, convert_rows, load_instructions
from hfstack.tasks.token_classification.data import load_sentences

ROOT = Path(__file__).parent.parent
COUNT = 60  # rows of each file, so that every share that is held out leaves some
# recipes of a finished model: tests/test_docs_finished.py
FINISHED = ("evaluate_lm", "predict", "explain", "annotate", "generate", "scaling_fit", "search")
FILE_FLAGS = {"--datasets": 0, "--eval_datasets": 100, "--prompts_file": 0}  # and the first row

Rows = list[dict[str, Any]]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield the recipe and the flags of each different command with files of its own."""
    seen = set()
    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    # those of the task pages run in test_tasks.py, and a translation has the English commands
    for page in [page for page in pages if not {"tasks", "zh"} & set(page.parts)]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^[ \t]*hfstack run ([^\n#|>&`]+)", text, re.MULTILINE):
            # the launcher's own, which no reader sees
            recipe, *flags = shlex.split(re.sub(r"--sweep \S+", "", line))
            # what stands for a value, or lies on the Hub, is no file of a reader
            known = recipe in READERS or recipe in FINISHED
            if not known or not {*FILE_FLAGS} & {*flags} or "$" in line:
                continue
            if "user/dataset" in flags or (key := (recipe, tuple(data_flags(flags)))) in seen:
                continue
            seen.add(key)
            yield recipe, flags


def all_commands() -> Iterator[list[str]]:
    """Yield the words of every command of the docs that names values of its own alone."""
    for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^[ \t]*hfstack run ([^\n#|>&`]+)", text, re.MULTILINE):
            if not re.search(r"[$<\[{]|\.\.\.|my_recipes|_words", line):
                yield shlex.split(re.sub(r"--sweep \S+", "", line))


def test_every_command_fits_its_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a YAML says of its example is left out where a command names something else."""
    monkeypatch.chdir(tmp_path)
    refused = []
    for recipe, *flags in {tuple(words): words for words in all_commands()}.values():
        try:
            read_recipe_settings(ROOT / "recipes" / f"{recipe}.py", flags)
        except HfstackError as error:
            # files are not here, and some options are the launcher's
            if not re.search(r"no such file|unknown option", str(error)):
                refused.append((recipe, flags, str(error)))
    assert not refused


def data_flags(flags: list[str]) -> list[str]:
    """Return the flags that say where rows are and how they are read."""
    heads = [index for index, flag in enumerate(flags) if flag.startswith("--")]
    groups = [flags[a:b] for a, b in zip(heads, [*heads[1:], len(flags)], strict=True)]
    kept = re.compile(
        r"--(.*datasets|prompts_file|.*columns?|task|tag_names|.*threshold|convert_only)"
    )
    return [word for group in groups if kept.fullmatch(group[0]) for word in group]


def text_rows(flags: list[str], first: int) -> Rows:
    column = flags[flags.index("--text_column") + 1] if "--text_column" in flags else "text"
    return [{column: f"The fox of story {first + at} ran home."} for at in range(COUNT)]


def make_rows(name: str, recipe: str, flags: list[str], first: int) -> Rows:
    """Return rows as the page describes the file: by its name, or by the recipe."""
    numbers = range(first, first + COUNT)  # even, so that a prompt's ratings come in pairs
    kind = Path(name).stem
    if kind in ("pairs", "preferences") and recipe != "embed":
        return [
            {"prompt": f"p {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in numbers
        ]
    if kind == "thumbs":
        return [{"prompt": f"p {n}", "completion": f"a {n}", "label": n % 2 == 0} for n in numbers]
    if kind == "ratings":
        return [
            {"prompt": f"p {n // 2}", "completion": f"a {n}", "rating": 3 + n % 2} for n in numbers
        ]
    if kind == "alpaca":
        return [{"instruction": f"i {n}", "input": f"c {n}", "output": f"o {n}"} for n in numbers]
    if kind == "chat":
        roles = ("user", "assistant")
        return [{"messages": [{"role": r, "content": f"{r} {n}"} for r in roles]} for n in numbers]
    tasks = ("instructions", "completions")  # the second is what a model has answered
    if kind in tasks or (recipe in ("sft", "distill") and kind in ("few", "test", "questions")):
        return [{"prompt": f"p {n}", "completion": f"a {n}"} for n in numbers]
    if kind in ("prompts", "problems", "hh_chosen", "questions"):
        return [{"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in numbers]
    if recipe == "scaling_fit":
        names = [
            flags[flags.index(f"--{name}_column") + 1] if f"--{name}_column" in flags else usual
            for name, usual in (("parameters", "N"), ("tokens", "D"))
        ]
        return [
            {names[0]: 1000 * n, names[1]: 20_000 * n, "loss": 5 / n, "excluded_in_paper": 0}
            for n in range(1, COUNT)
        ]
    if recipe == "embed":
        query, passage = (
            flags[flags.index(f"--{name}_column") + 1] for name in ("query", "passage")
        )
        return [{query: f"q {n}", passage: f"a {n}"} for n in numbers]
    if recipe == "search":
        return [{"passage": f"The fox of story {n}"} for n in numbers]
    if recipe == "predict":
        column = flags[flags.index("--text_column") + 1] if "--text_column" in flags else "text"
        return [{"id": str(n), column: f"r {n}"} for n in numbers]
    if recipe == "answer":
        answers = {"text": ["den"], "answer_start": [4]}
        return [
            {"question": f"Where {n}?", "context": f"The den {n}", "answers": answers}
            for n in numbers
        ]
    if recipe == "tag":
        return [{"tokens": ["Ada", f"n{n}"], "tags": ["B-person", "O"]} for n in numbers]
    if recipe == "classify" and "--task" in flags and "rte" in flags:
        return [{"sentence1": f"s {n}", "sentence2": f"t {n}", "label": n % 2} for n in numbers]
    if recipe == "classify" and "--text_column" not in flags:
        return [{"text": f"r {n}", "label": n % 3 + 1} for n in numbers]
    if recipe == "classify":
        label = flags[flags.index("--label_column") + 1] if "--label_column" in flags else "stars"
        return [{"review": f"r {n}", label: n % 3 + 1} for n in numbers]
    if recipe == "seq2seq":
        source, target = (
            flags[flags.index(f"--{side}_column") + 1] if f"--{side}_column" in flags else side
            for side in ("source", "target")
        )
        return [{source: f"s {n}", target: f"t {n}"} for n in numbers]
    return text_rows(flags, first)


def write_files(recipe: str, flags: list[str]) -> tuple[Rows, Rows]:
    """Write the files that a command names; return the train and the held-out rows."""
    rows: dict[str, Rows] = {option: [] for option in FILE_FLAGS}
    for option, first in FILE_FLAGS.items():
        if option not in flags:
            continue
        name = flags[flags.index(option) + 1]
        rows[option] = make_rows(name, recipe, flags, first)

        path = Path(name.replace("*", "part"))
        if name.endswith("/"):
            path = path / "part.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = "".join(json.dumps(row) + "\n" for row in rows[option])
        if path.suffix == ".csv":
            lines = [
                ",".join(rows[option][0]),
                *(",".join(map(str, r.values())) for r in rows[option]),
            ]
            content = "\n".join(lines) + "\n"
        if path.suffix == ".txt":
            content = "".join(f"{row['prompt']}\n" for row in rows[option])
        if path.suffix == ".parquet":
            datasets.Dataset.from_list(rows[option]).to_parquet(str(path))
            continue
        pack = {".zst": zstandard.compress, ".gz": gzip.compress}.get(path.suffix, bytes)
        path.write_bytes(pack(content.encode()))
    return rows["--datasets"] or rows["--prompts_file"], rows["--eval_datasets"]


def read_text(data: DataArgs, settings: dict[str, Any]) -> dict[str, Rows]:
    column = data.text_column
    return {
        name: [{column: row[column]} for row in rows] for name, rows in load_splits(data).items()
    }


def read_documents(data: DataArgs, settings: dict[str, Any]) -> dict[str, Rows]:
    args = settings["CleanArgs"]
    column = args.text_column
    rows = cast(Any, iterate_rows(args.datasets, columns={column}))
    return {"train": [{column: row[column]} for row in rows]}


def read_labels(data: DataArgs, settings: dict[str, Any]) -> dict[str, Rows]:
    args: LabelArgs = settings["LabelArgs"]
    found = load_labelled(data, args)
    names = [*filter(None, found.columns), found.label_column]
    return {
        name: [{key: row[key] for key in names} for row in rows]
        for name, rows in found.splits.items()
    }


def read_tags(data: DataArgs, settings: dict[str, Any]) -> dict[str, Rows]:
    args = settings["TagArgs"]
    sentences, _, _ = load_sentences(
        data,
        tokens_column=args.tokens_column,
        tags_column=args.tags_column,
        tag_names=args.tag_names,
        bad_tags=args.bad_tags,
        quarantine_file=Path("bad.jsonl"),
        row_counts=RowCounts(),
    )
    return {
        name: [{"tokens": s.words, "tags": s.tags} for s in rows]
        for name, rows in sentences.items()
    }


def read_answers(data: DataArgs, settings: dict[str, Any]) -> dict[str, Rows]:
    args = settings["AnswerArgs"]
    columns = (args.question_column, args.context_column, args.answers_column)
    found = {
        name: read_questions(rows, columns=columns, name=name)
        for name, rows in load_splits(data).items()
    }
    return {
        name: [
            {
                "question": one.question,
                "context": one.context,
                "answers": {
                    "text": [text for text, _ in one.answers],
                    "answer_start": [start for _, start in one.answers],
                },
            }
            for one in rows
        ]
        for name, rows in found.items()
    }


def read_translations(data: DataArgs, settings: dict[str, Any]) -> dict[str, Rows]:
    args = settings["Seq2SeqArgs"]
    assert args.source_prefix == "", "the YAML's prefix belongs to its own data"
    names = (args.source_column, args.target_column)
    pairs, _ = load_sources_and_targets(data, names, quarantine_file=Path("bad.jsonl"))
    return {
        name: [{names[0]: one.source, names[1]: one.targets[0]} for one in rows]
        for name, rows in pairs.items()
    }


def read_instructions(data: DataArgs, settings: dict[str, Any]) -> dict[str, Rows]:
    args = settings.get("SftArgs") or settings["StudentArgs"]
    context = getattr(args, "context_column", None)
    columns = Columns(args.prompt_column, args.completion_column, context, data.text_column)
    splits, _ = load_instructions(
        data, columns, quarantine_file=Path("bad.jsonl"), row_counts=RowCounts()
    )
    return {
        name: [
            {"messages": json.loads(row["messages"])}
            for row in cast(Any, convert_rows(rows, columns, as_chat=args.as_chat))
        ]
        for name, rows in splits.items()
    }


def read_preferences(
    data: DataArgs, settings: dict[str, Any], form: Any = "pairs"
) -> dict[str, Rows]:
    args: PreferenceArgs = settings["PreferenceArgs"]
    keys = ("prompt", "chosen", "rejected", "completion", "label")

    def text_of(value: Any) -> Any:  # of one turn, where texts became turns
        return value[0]["content"] if isinstance(value, list) else value

    return {
        name: [{key: text_of(row[key]) for key in keys if key in row} for row in cast(Any, rows)]
        for name, rows in load_preferences(data, args, form=form).items()
    }


def read_thumbs(data: DataArgs, settings: dict[str, Any]) -> dict[str, Rows]:
    return read_preferences(data, settings, "labels")


def read_prompts(data: DataArgs, settings: dict[str, Any]) -> dict[str, Rows]:
    found = load_prompts(data, recipe="rloo", as_chat=False, quarantine_file=Path("bad.jsonl"))
    return {name: list(rows) for name, rows in found.items()}


def read_matches(data: DataArgs, settings: dict[str, Any]) -> dict[str, Rows]:
    args: RowsArgs = settings["EmbedArgs"]
    found, _ = load_text_pairs(
        data, args, quarantine_file=Path("bad.jsonl"), row_counts=RowCounts()
    )
    return {
        name: [{args.query_column: one.query, args.passage_column: one.passage} for one in rows]
        for name, rows in found.items()
    }


READERS: dict[str, Callable[[DataArgs, dict[str, Any]], dict[str, Rows]]] = {
    **dict.fromkeys(("tokenizer", "pretrain_clm", "pretrain_mlm"), read_text),
    "clean": read_documents,
    **dict.fromkeys(("dpo", "orpo", "reward", "preferences"), read_preferences),
    **dict.fromkeys(("ppo", "rloo", "grpo", "win_rate"), read_prompts),
    "kto": read_thumbs,
    "classify": read_labels,
    "tag": read_tags,
    "answer": read_answers,
    "seq2seq": read_translations,
    **dict.fromkeys(("sft", "distill"), read_instructions),
    "embed": read_matches,
}


def expected(recipe: str, rows: Rows) -> Rows:
    """Return the rows as a recipe has to read them."""
    if recipe in ("sft", "distill") and "messages" not in rows[0]:
        asked, answered = (
            ("prompt", "completion") if "prompt" in rows[0] else ("instruction", "output")
        )
        contexts = [f"\n\n{row['input']}" if "input" in row else "" for row in rows]
        turns = [
            (("user", row[asked] + context), ("assistant", row[answered]))
            for row, context in zip(rows, contexts, strict=True)
        ]
        return [
            {"messages": [{"role": role, "content": text} for role, text in pair]} for pair in turns
        ]
    if "rating" not in rows[0]:
        return rows

    # of each prompt the first answer has 3, the second 4
    if recipe == "kto":
        return [
            {"prompt": row["prompt"], "completion": row["completion"], "label": row["rating"] >= 4}
            for row in rows
        ]
    return [
        {"prompt": good["prompt"], "chosen": good["completion"], "rejected": bad["completion"]}
        for bad, good in zip(rows[::2], rows[1::2], strict=True)
    ]


def spelled(rows: Rows) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True, default=str) for row in rows)


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        pytest.param(*each, id=" ".join([each[0], *data_flags(each[1])]))
        for each in commands()
        if each[0] in READERS
    ],
)
def test_a_command_reads_its_rows(
    recipe: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    train, held_out = write_files(recipe, flags)
    given = read_recipe_settings(ROOT / "recipes" / f"{recipe}.py", flags)
    settings = {type(one).__name__: one for one in given}

    found = READERS[recipe](settings.get("DataArgs", DataArgs()), settings)
    if held_out:
        assert spelled(found["eval"]) == spelled(expected(recipe, held_out))
        assert spelled(found["train"]) == spelled(expected(recipe, train))
    else:
        assert found["train"]
        everything = [row for rows in found.values() for row in rows]
        assert spelled(everything) == spelled(expected(recipe, train))
