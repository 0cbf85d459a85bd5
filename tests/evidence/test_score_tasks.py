"""Every task's score equals what its training measured on the same rows, to the last digit."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from hfstack.data.sources import Source
from hfstack.errors import DataError
from hfstack.runs.record import read_run
from tests.recipes.test_answer import make_rows as make_questions
from tests.recipes.test_embed import make_rows as make_searches
from tests.recipes.test_seq2seq import make_rows as make_pairs
from tests.recipes.test_tag import make_rows as make_sentences
from tests.tiny_chat import save_tiny_chat
from tests.tiny_encoder import save_tiny_bert

CLOCKS = ("_runtime", "_per_second", "_preparation_time")
SMALL = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "learning_rate": 5e-3,
    "report_to": "none",
    "bf16": "false",
    "dataloader_pin_memory": "false",
    "save_strategy": "no",
    "activation_checkpointing": "false",
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture
def twice(run_recipe, tmp_path: Path) -> Callable[..., tuple[dict, dict]]:
    """Train on some rows, measure on others in training and by `score`; return both."""

    def write(name: str, rows: list[dict]) -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def call(
        recipe: str, train: list[dict], held: list[dict], *, more: dict | None = None, **options
    ) -> tuple[dict, dict]:
        files = write("train", train), write("held", held)
        settings = SMALL | {"datasets": files[0], "eval_datasets": files[1]} | options
        settings["output_dir"] = tmp_path / recipe
        trained = run_recipe(recipe, *(f"--{k}={v}" for k, v in settings.items() if v is not None))
        asked = {"model_name_or_path": tmp_path / recipe, "datasets": files[1]} | (more or {})
        asked["output_dir"] = tmp_path / "score"
        return trained, run_recipe("score", *(f"--{k}={v}" for k, v in asked.items()))

    return call


def assert_same(trained: dict, found: dict, *, prefixes: tuple[str, ...], at_least: int) -> None:
    names = [
        name
        for name in trained
        if name.startswith(prefixes) and not name.endswith(CLOCKS) and name in found
    ]
    assert len(names) >= at_least, names
    assert {name: found[name] for name in names} == {name: trained[name] for name in names}


def test_a_tagger(twice, run_recipe, tmp_path: Path) -> None:
    rows = make_sentences(90)
    model = save_tiny_bert(tmp_path / "bert")
    more = {"train_datasets": tmp_path / "train.jsonl"}
    trained, found = twice(
        "tag", rows[:60], rows[60:], model_name_or_path=model, max_steps=12, more=more
    )
    assert_same(trained, found, prefixes=("eval_", "baseline_"), at_least=11)
    assert 0 < found["eval_entity_f1_high"] <= 1 and found["eval_rows"] == 30

    odd = tmp_path / "odd.jsonl"
    odd.write_text(json.dumps({"tokens": ["a", "b"], "ner_tags": ["O", "B-planet"]}) + "\n")
    with pytest.raises(DataError, match="the tag .B-planet. is none of O, B-animal"):
        run_recipe(
            "score",
            *(f"--model_name_or_path={tmp_path / 'tag'}", f"--datasets={odd}"),
            f"--output_dir={tmp_path / 'bad'}",
        )


def test_a_model_of_search(twice, run_recipe, tmp_path: Path) -> None:
    rows = [row | {"source": ("web", "book")[n % 2]} for n, row in enumerate(make_searches())]
    model = save_tiny_bert(tmp_path / "bert")
    more = {
        "train_datasets": tmp_path / "train.jsonl",
        "reference_model": tmp_path / "embed",
        "group_column": "source",
    }
    trained, found = twice(
        "embed", rows[:20], rows[20:], model_name_or_path=model, max_steps=20, more=more
    )
    assert_same(trained, found, prefixes=("eval_", "bm25_"), at_least=20)

    # beside itself nothing differs, and each query is a row
    assert found["compared_rows"] == 16 and found["difference_ndcg_at_10"] == 0
    text = (tmp_path / "score" / "rows.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["query"] for line in lines] == [row["query"] for row in rows[20:]]
    assert all(line["right"] == (line["rank"] == 1) for line in lines)
    assert found["eval_recall_at_1"] == sum(line["right"] for line in lines) / 16
    table = read_run(tmp_path / "score").tables["by group"]
    assert [row[:2] for row in table["rows"]] == [["book", 8], ["web", 8]]
    column = table["columns"].index("ndcg_at_10")
    mean = sum(row[column] for row in table["rows"]) / 2
    assert mean == pytest.approx(found["eval_ndcg_at_10"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bi_encoder", "cross_encoder"])
def test_how_alike_two_texts_are(twice, tmp_path: Path, kind: str) -> None:
    rows = [row | {"score": n % 5} for n, row in enumerate(make_searches())]
    model = save_tiny_bert(tmp_path / "bert")
    trained, found = twice(
        "embed", rows[:20], rows[20:], model_name_or_path=model, kind=kind, max_steps=8
    )
    assert_same(trained, found, prefixes=("eval_", "bm25_"), at_least=6)


@pytest.mark.slow
def test_a_model_that_answers_by_spans(twice, tmp_path: Path) -> None:
    rows = make_questions(60)
    model = save_tiny_bert(tmp_path / "bert")
    lengths = {"max_length": 32, "stride": 8, "max_answer_tokens": 4}
    trained, found = twice(
        "answer", rows[:45], rows[45:], model_name_or_path=model, max_steps=10, **lengths
    )
    assert_same(trained, found, prefixes=("eval_", "baseline_"), at_least=9)


@pytest.mark.slow
def test_an_encoder_decoder(twice, tiny_tokenizer, tmp_path: Path) -> None:
    rows = make_pairs()
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    shape = {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_heads": 2,
        "dropout_rate": 0.0,
        "num_layers": 1,
        "num_decoder_layers": 1,
    }
    (tmp_path / "t5.json").write_text(json.dumps(shape))
    trained, found = twice(
        "seq2seq",
        rows[:50],
        rows[50:],
        model_name_or_path=tmp_path / "t5.json",
        tokenizer_name_or_path=tmp_path / "tokenizer",
        generation_max_length=12,
    )
    assert_same(trained, found, prefixes=("eval_", "baseline_"), at_least=14)


@pytest.mark.slow
def test_a_reward_model(twice, tiny_llama: Path, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"Tell of fox {n}: ",
            "chosen": "a kind fox was happy",
            "rejected": "the red ball ran and ran"[: 9 + n % 9],
        }
        for n in range(40)
    ]
    trained, found = twice(
        "reward",
        rows[:28],
        rows[28:],
        model_name_or_path=tiny_llama,
        more={"train_datasets": tmp_path / "train.jsonl"},
    )
    ours = {k: v for k, v in trained.items() if k not in ("eval_loss", "eval_accuracy_runtime")}
    assert_same(ours, found, prefixes=("eval_",), at_least=15)
    # TRL adds a term to its loss that centres the rewards, so only ours is that of the pairs alone
    assert 0 < found["eval_pair_loss"] < 5


@pytest.mark.slow
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_answers_of_a_language_model(twice, tiny_llama: Path, tmp_path: Path, chat: bool) -> None:
    rows = [
        {"prompt": f"Who is number {n}?", "completion": f"The {('fox', 'owl', 'hen')[n % 3]}."}
        for n in range(40)
    ]
    trained, found = twice(
        "sft",
        rows[:28],
        rows[28:],
        model_name_or_path=save_tiny_chat(tiny_llama, tmp_path / "chat"),
        as_chat=str(chat).lower(),
        max_length=64,
        packing="false",
        answer_rows=6,
        answer_tokens=8,
        more={"answer_rows": 6, "answer_tokens": 8},
    )
    names = ("held_out_", "bleu", "chrf", "rouge", "finished", "mean_answer", "answer_rows")
    assert_same(trained, found, prefixes=names, at_least=12)
    lines = [
        json.loads(line) for line in (tmp_path / "score" / "rows.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 12 and sum("answer" in line for line in lines) == 6
    loss = math.fsum(line["nll"] for line in lines) / sum(line["tokens"] for line in lines)
    assert loss == found["held_out_loss"]


@pytest.mark.slow
def test_a_masked_language_model(twice, tmp_path: Path) -> None:
    texts = [{"text": f"the small fox {n} saw the red ball near the river"} for n in range(40)]
    trained, found = twice(
        "pretrain_mlm",
        texts[:30],
        texts[30:],
        model_name_or_path=save_tiny_bert(tmp_path / "bert"),
        block_size=32,
        pseudo_perplexity_texts=10,
    )
    assert_same(trained, found, prefixes=("pseudo_", "texts_scored"), at_least=2)
    assert_same(trained, found, prefixes=("eval_loss", "eval_masked_"), at_least=3)
    assert found["pseudo_perplexity_low"] <= found["pseudo_perplexity"]
    assert read_run(tmp_path / "score").data[0]["path"] == str(
        Source(str(tmp_path / "held.jsonl")).path
    )
