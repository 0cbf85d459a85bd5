"""The commands of the task pages run, one after the other, on small files and tiny models.

What is replaced is the model of the Hub, the sizes, and where files go; all else is run as it
stands on the page. The pages of other languages have the same commands (tests/test_docs.py).
"""

import csv
import gzip
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from hfstack.cli import main as cli
from hfstack.demo.instructions import instructions
from hfstack.demo.stories import story
from hfstack.runs.record import read_run
from hfstack.sandbox.run import why_not_isolated
from tests.conftest import ROOT, SENTENCES
from tests.tiny_chat import save_tiny_chat
from tests.tiny_encoder import save_tiny_bert

Run = Callable[[str], None]

_BRIEF = "--max_steps 2 --eval_strategy no --save_strategy no --bf16 false"
_BRIEF_BATCH = f"{_BRIEF} --per_device_train_batch_size 2 --gradient_accumulation_steps 1"
TINY = {
    "classify": f"{_BRIEF} --load_best_model_at_end false --max_length 32",
    "tag": f"{_BRIEF} --load_best_model_at_end false --max_length 32",
    "answer": f"{_BRIEF} --max_length 48 --stride 8",
    "embed": f"{_BRIEF} --load_best_model_at_end false --max_length 32",
    "explain": "--tolerance 0.9",
    "sft": f"{_BRIEF_BATCH} --max_length 96 --answer_rows 2 --answer_tokens 4",
    "reward": f"{_BRIEF_BATCH} --max_length 96",
    "ppo": "--total_episodes 8 --per_device_train_batch_size 4 --max_completion_length 4",
    "win_rate": "--max_new_tokens 4",
    "rloo": "--max_steps 1 --per_device_train_batch_size 4 --num_generations 2 "
    "--max_completion_length 4",
    "score": "--code_tokens 4",
    "pretrain_clm": f"{_BRIEF_BATCH} --block_size 32 --sample_tokens 4",
    "tokenizer": "--vocab_size 3000",
    "generate": "--max_new_tokens 4",
    "seq2seq": f"{_BRIEF_BATCH} --load_best_model_at_end false --generation_num_beams 1 "
    "--max_source_length 16 --max_target_length 4",
}


def commands_of(page: Path) -> Iterator[str]:
    """The commands of a page's bash blocks; a here-document belongs to its command."""
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        lines = iter(block.replace("\\\n", " ").splitlines())
        for line in lines:
            if (end := re.search(r"<<'(\w+)'", line)) is not None:
                rows = list(iter(lambda lines=lines: next(lines), end[1]))
                yield "\n".join([line, *rows, end[1]]) + "\n"
            elif line.strip() and not line.startswith("#"):
                yield line


@pytest.fixture
def run(
    run_recipe: Callable[..., dict[str, float]],
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Run one command of a page, in this process where it is hfstack's."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    models = {
        "sentence-transformers/all-MiniLM-L6-v2": save_tiny_bert(tmp_path / "tiny-bert"),
        "HuggingFaceTB/SmolLM2-135M-Instruct": save_tiny_chat(tiny_llama, tmp_path / "tiny-chat"),
        "runs/story/sft": tmp_path / "tiny-chat",
        "file:///srv/models": f"file://{tmp_path}/published",
    }

    def call(command: str) -> None:
        for name, local in models.items():
            command = command.replace(name, str(local))
        if not command.startswith("hfstack "):
            subprocess.run(["bash", "-c", command], check=True)
            return

        verb, *words = shlex.split(command)[1:]
        if verb == "run":
            recipe, *flags = words
            settings = ROOT / "recipes" / f"{recipe}.yaml"
            run_recipe(recipe, "--config", settings, *flags, *shlex.split(TINY.get(recipe, "")))
        else:
            assert verb == "chat" and cli.main([verb, *words, "--max_new_tokens", "4"]) == 0

    return call


def write_files(folder: Path) -> None:
    """Write the files that the pages name, small."""
    stories = [f"{sentence} {number}" for number in range(12) for sentence in SENTENCES]
    labels = ("positive", "negative")
    table = [{"review": text, "sentiment": labels[n % 2]} for n, text in enumerate(stories)]
    write_table(folder / "reviews.csv", table)
    write_table(folder / "new.csv", [{"id": 7, "review": "so kind"}, {"id": 8, "review": "a red"}])

    documents = [{"text": story(0, number).text} for number in range(40)]  # no two are alike
    write_rows(folder / "articles.jsonl", documents)
    (folder / "my_texts").mkdir()
    write_rows(folder / "my_texts" / "stories.jsonl", documents)

    tasks = list(instructions(0, 24, task="beginning"))
    write_rows(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in tasks])
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "the fox was in the"}
        for row in tasks
    ]
    write_rows(folder / "preferences.jsonl", pairs)
    write_rows(
        folder / "questions.jsonl",
        [{"question": f"What is {number}?", "answer": f"It is {number}."} for number in range(24)],
    )

    write_table(
        folder / "faq.csv",
        [
            {"question": f"{sentence} ?", "answer": f"yes , {number} : {sentence}"}
            for number in range(12)
            for sentence in SENTENCES[number % 3 :]
        ],
    )

    tagged = [
        {"tokens": ["Ada", "lived", "in", place], "tags": ["B-person", "O", "O", "B-place"]}
        for place in ("London", "Paris", "Rome", "Oslo", "Bern", "Kyiv")
    ]
    write_rows(folder / "tweets.jsonl", tagged)
    write_rows(folder / "tweets_test.jsonl", [{**tagged[0], "tokens": ["Eve", "was", "in", "Rom"]}])
    write_rows(folder / "sentences.jsonl", [{"tokens": "Ada went to Paris"}])
    passages = []
    for number in range(24):
        start = f"Ada number {number} lived in "
        answers = {"text": ["London"], "answer_start": [len(start)]}
        passages.append(
            {"context": f"{start}London.", "question": "Where did she live?", "answers": answers}
        )
    write_rows(folder / "passages.jsonl", passages)
    write_rows(folder / "ask.jsonl", [{"context": "Ada lives in Rome.", "question": "Where?"}])

    for language in ("en", "de"):
        (folder / f"train.{language}").write_text("".join(f"{text}\n" for text in stories))
        (folder / f"test.{language}").write_text("".join(f"{text}\n" for text in SENTENCES))
    (folder / "new.en").write_text("A dog runs.\n")


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def run_page(run: Run, name: str) -> None:
    commands = list(commands_of(ROOT / "docs" / "tasks" / name))
    assert commands, f"{name} has no command"
    for command in commands:
        run(command)


def test_classify(run: Run, tmp_path: Path) -> None:
    run_page(run, "classify.md")
    with (tmp_path / "runs/predicted/predictions.csv").open() as file:
        predicted = list(csv.DictReader(file))
    assert [row["id"] for row in predicted] == ["7", "8"]
    assert {row["label"] for row in predicted} <= {"positive", "negative"}
    assert "<html" in (tmp_path / "runs/report/report.html").read_text()
    assert (tmp_path / "runs/explained/explanations.html").is_file()


@pytest.mark.slow
def test_from_csv_and_publish(run: Run, tmp_path: Path) -> None:
    run_page(run, "from_csv.md")
    assert len(list(commands_of(ROOT / "docs" / "tasks" / "from_csv.md"))) == 6
    card = (tmp_path / "published" / "reviews" / "README.md").read_text()
    assert "license: apache-2.0" in card and "language:" in card
    run_page(run, "publish.md")


@pytest.mark.slow
def test_answer_customers(run: Run, tmp_path: Path) -> None:
    run_page(run, "answer_customers.md")
    hits = (tmp_path / "runs/faq_search/results.jsonl").read_text().splitlines()
    assert [json.loads(hit)["rank"] for hit in hits] == [1, 2, 3]


@pytest.mark.slow
def test_chat_model(run: Run, tmp_path: Path) -> None:
    run_page(run, "chat_model.md")
    assert (tmp_path / "runs/assistant/model.safetensors").is_file()  # merged: no adapter is needed


@pytest.mark.slow
def test_rlhf(run: Run, tmp_path: Path) -> None:
    run_page(run, "rlhf.md")
    assert read_run(tmp_path / "runs/win_rate").metrics["prompts"] > 0
    assert read_run(tmp_path / "runs/reward").status == "finished"


@pytest.mark.slow
def test_continue_pretraining(run: Run, tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "runs" / "model")
    run_page(run, "continue_pretraining.md")
    before, after = (read_run(tmp_path / "runs" / name) for name in ("before", "after"))
    assert before.metrics["bits_per_byte"] != after.metrics["bits_per_byte"]


@pytest.mark.slow
def test_pretrain(run: Run, tmp_path: Path) -> None:
    run_page(run, "pretrain.md")
    assert (tmp_path / "runs/generated/completions.jsonl").is_file()


@pytest.mark.slow
def test_tag_or_answer(run: Run, tmp_path: Path) -> None:
    run_page(run, "tag_or_answer.md")
    tagged = json.loads((tmp_path / "runs/tagged/predictions.jsonl").read_text())
    assert tagged["words"] == ["Ada", "went", "to", "Paris"]
    answered = json.loads((tmp_path / "runs/answered/predictions.jsonl").read_text())
    assert answered["answer"] in "Ada lives in Rome."


@pytest.mark.slow
def test_translate(run: Run, tmp_path: Path) -> None:
    run_page(run, "translate.md")
    row = json.loads((tmp_path / "runs/translated/predictions.jsonl").read_text())
    assert list(row) == ["text"]


@pytest.mark.slow
def test_the_cost_on_the_page_of_questions_is_what_the_plan_says(run: Run, tmp_path: Path) -> None:
    page = ROOT / "docs" / "questions.md"
    for command in commands_of(page):
        run(command)
    shown = float(re.search(r"^  money +([\d.]+)$", page.read_text(), re.MULTILINE)[1])  # pyright: ignore[reportOptionalSubscript]
    assert read_run(tmp_path / "runs/plan").metrics["money"] == pytest.approx(shown, rel=1e-3)


def test_spam_filter(run: Run, tmp_path: Path) -> None:
    rows = [{"message": f"text {n}", "kind": ("spam", "ham")[n % 2]} for n in range(60)]
    write_table(tmp_path / "messages.csv", rows)
    write_table(tmp_path / "inbox.csv", [{"message": "win a prize"}, {"message": "see you"}])
    run_page(run, "spam_filter.md")
    predicted = (tmp_path / "runs/sorted/predictions.csv").read_text().splitlines()
    assert len(predicted) == 3 and {"spam", "ham"} >= {line.split(",")[0] for line in predicted[1:]}


def write_news(folder: Path) -> None:
    rows = [
        {"title": f"Title {n}", "text": f"{story(1, n).text}", "topic": ("Sports", "World")[n % 2]}
        for n in range(60)
    ]
    write_rows(folder / "news.jsonl", rows)
    write_rows(folder / "tomorrow.jsonl", [{"text": "the team won"}])


def test_news(run: Run, tmp_path: Path) -> None:
    write_news(tmp_path)
    run_page(run, "news.md")
    row = json.loads((tmp_path / "runs/tomorrow/predictions.jsonl").read_text())
    assert row["label"] in ("Sports", "World")


@pytest.mark.slow
def test_headlines(run: Run, tmp_path: Path) -> None:
    texts = [story(1, n).text.partition(". ")[0] for n in range(60)]  # short enough to end
    write_rows(
        tmp_path / "news.jsonl", [{"title": f"Title {n}", "text": t} for n, t in enumerate(texts)]
    )
    run_page(run, "headlines.md")
    found = read_run(tmp_path / "runs/writer").metrics
    assert found["eval_loss"] > 0 and found["answer_rows"] == 2
    assert read_run(tmp_path / "runs/better_writer").status == "finished"


@pytest.mark.slow
def test_poems(run: Run, tmp_path: Path) -> None:
    pieces = [f"SPEAKER {n}:\n{story(2, n).text}" for n in range(60)]
    (tmp_path / "verse.txt").write_text("\n\n".join(pieces))
    run_page(run, "poems.md")
    rows = (tmp_path / "runs/verses/completions.jsonl").read_text().splitlines()
    assert [json.loads(row)["prompt"] for row in rows] == ["ROMEO:", "What light"]


@pytest.mark.slow
def test_code(
    run_recipe: Callable[..., dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page as it stands: a model that was trained less writes no program that is rewarded."""
    if reason := why_not_isolated():
        pytest.skip(f"this system gives no namespaces: {reason}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for command in commands_of(ROOT / "docs" / "tasks" / "code.md"):
        if not command.startswith("hfstack run "):
            subprocess.run(["bash", "-c", command], check=True)
            continue
        recipe, *flags = shlex.split(command)[2:]
        if recipe in ("rloo", "score"):
            flags += ["--allow_root", "true"]
        run_recipe(recipe, "--config", ROOT / "recipes" / f"{recipe}.yaml", *flags)

    found = read_run(tmp_path / "runs/code_after").metrics
    assert found["code_solutions_pass"] == 1 and found["code_problems"] == 200
    print({name: value for name, value in found.items() if "pass" in name})


def copy_real_data(shared_data: Path, folder: Path) -> None:
    """Write the sets that the page on Chinese text reports on, a fifth of the rows of each."""
    rows = read_gzip(shared_data / "cls" / "chnsenticorp_hotel.jsonl.gz")
    table = [{"text": row["text"], "label": row["label_name"]} for row in rows]
    write_table(folder / "hotel.csv", table)
    poems = read_gzip(shared_data / "lm" / "zh_poetry.jsonl.gz")
    (folder / "poems.txt").write_text("\n\n".join(row["text"] for row in poems))


def read_gzip(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in islice(file, 0, None, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["sample", pytest.param("real", marks=pytest.mark.shared)])
def test_chinese(run: Run, source: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The samples that stand on the page, or the sets that its figures are of in their place."""
    commands = list(commands_of(ROOT / "docs" / "tasks" / "chinese.md"))
    if source == "real":
        commands = [command for command in commands if not command.startswith("cat ")]
        copy_real_data(request.getfixturevalue("shared_data"), tmp_path)
    for command in commands:
        run(command)

    info = json.loads((tmp_path / "runs/hotel/classifier.json").read_text())
    names = ["好评", "差评"] if source == "sample" else ["negative", "positive"]
    assert sorted(info["names"]) == sorted(names)
    samples = (tmp_path / "runs/poem_samples/completions.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in samples] == ["春", "明月"]
