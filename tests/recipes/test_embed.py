"""Models of search, end to end on a tiny encoder: they learn, load plainly, resume, refuse."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy
import pytest
from safetensors.torch import load_file, save_file
from trl import ModelConfig

from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.models.contents import identify_model
from hfstack.runs.record import read_run
from hfstack.tasks.retrieval.model import load_retriever
from tests.tiny_encoder import save_tiny_bert

ANIMALS = ["fox", "owl", "rabbit", "girl", "boy", "hedgehog"]
THINGS = ["ball", "river", "forest", "house", "tree", "box"]


def make_rows(seed: int = 0) -> list[dict]:
    """A question and a passage for each animal with each thing, in other words."""
    rows = [
        {"query": f"where is {animal} {thing}", "passage": f"the {thing} was near a small {animal}"}
        for animal in ANIMALS
        for thing in THINGS
    ]
    random.Random(seed).shuffle(rows)
    return rows


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_bert(folder / "bert")
    write(folder / "rows.jsonl", make_rows())
    return folder


@pytest.fixture
def embed(run_recipe, inputs: Path, tmp_path: Path):
    """Call the recipe with small settings; keyword arguments override them."""

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "model_name_or_path": inputs / "bert",
            "datasets": inputs / "rows.jsonl",
            "eval_fraction": 0.3,
            "output_dir": tmp_path / "out",
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-3,
            "report_to": "none",
            "bf16": "false",
            "dataloader_pin_memory": "false",
            "save_strategy": "no",
        } | changes
        flags = []
        for name, value in settings.items():
            values = value if isinstance(value, list) else [value]
            flags += [] if value is None else [f"--{name}", *map(str, values)]
        return run_recipe("embed", *flags)

    return call


def test_learns_and_loads_by_plain_sentence_transformers(embed, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    metrics = embed(max_steps=40, query_prompt="ask: ", passage_prompt="text: ")
    assert metrics["eval_ndcg_at_10"] > metrics["before_ndcg_at_10"] + 0.1
    assert metrics["eval_gain_over_before_low"] > 0
    assert metrics["eval_ndcg_at_10_low"] <= metrics["eval_ndcg_at_10"]
    assert {"bm25_ndcg_at_10", "bm25_mrr_at_10_low", "eval_recall_at_10_high"} <= metrics.keys()

    out = tmp_path / "out"
    record = read_run(out)
    assert record.save_check["largest_difference"] <= record.save_check["allowed"]
    assert identify_model(str(out)).kind == "embedding model"
    assert not [*out.rglob("*.bin"), *out.rglob("*.pt"), *out.glob("README.md")]
    assert not (out / "eval").exists()

    # what was measured is what plain sentence-transformers finds
    model = SentenceTransformer(str(out), device="cpu")
    assert model.prompts == {"query": "ask: ", "document": "text: "}
    lines = [json.loads(line) for line in (out / "rankings.jsonl").read_text().splitlines()]
    passages = [row["passage"] for row in make_rows()]
    found = model.encode_query([line["query"] for line in lines]) @ (
        model.encode_document(passages).T
    )
    best = [passages[row] for row in found.argmax(axis=1)]
    assert best == [line["found"][0] for line in lines]


@pytest.mark.parametrize("kind", ["bi_encoder", "cross_encoder"])
def test_is_published_with_a_card_whose_code_runs(
    embed, run_recipe, tmp_path: Path, kind: str, capsys
) -> None:
    embed(kind=kind, per_device_eval_batch_size=64)
    shelf, out = tmp_path / "shelf", tmp_path / "out"
    run_recipe(
        *("publish", "--run", out, "--repo", f"file://{shelf}"),
        *("--output_dir", tmp_path / "published"),
    )
    # what plain sentence-transformers needs, and nothing else of the run
    names = {path.relative_to(shelf).as_posix() for path in shelf.rglob("*") if path.is_file()}
    assert {"modules.json", "model.safetensors", "publication.json", "README.md"} <= names
    assert ("1_Pooling/config.json" in names) == (kind == "bi_encoder")

    card = (shelf / "README.md").read_text()
    assert "library_name: sentence-transformers" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    capsys.readouterr()
    exec(code[1], {})  # noqa: S102 - it is the card's own
    assert ("tensor([[" if kind == "bi_encoder" else "corpus_id") in capsys.readouterr().out

    checked = run_recipe(
        "verify", "--repo", f"file://{shelf}", "--output_dir", tmp_path / "verified"
    )
    assert checked["files"] == len(names) - 1, "all but the list of them"


def test_predicts_vectors_and_scores_and_explains_matches(
    embed, run_recipe, tmp_path: Path
) -> None:
    pytest.importorskip("captum")
    embed(max_steps=20, query_prompt="ask: ")
    out, rows = tmp_path / "out", make_rows()[:3]
    path = write(tmp_path / "three.jsonl", rows)
    run_recipe(
        *("predict", "--model_name_or_path", out, "--datasets", path),
        *("--output_dir", tmp_path / "vectors"),
    )
    lines = (tmp_path / "vectors" / "predictions.jsonl").read_text().splitlines()
    vectors = numpy.array([json.loads(line)["embedding"] for line in lines])
    assert vectors.shape == (3, 32)
    assert numpy.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-4)

    run_recipe(
        *("predict", "--model_name_or_path", out, "--datasets", path),
        *("--text_pair_column", "passage", "--output_dir", tmp_path / "scores"),
    )
    lines = (tmp_path / "scores" / "predictions.jsonl").read_text().splitlines()
    scores = [json.loads(line)["score"] for line in lines]

    metrics = run_recipe(
        *("explain", "--model_name_or_path", out, "--texts", rows[0]["query"]),
        *("--answers", rows[0]["passage"], "--tolerance", "0.05"),
        *("--output_dir", tmp_path / "explained"),
    )
    assert metrics["texts"] == 2 and metrics["complete_share"] == 1
    lines = (tmp_path / "explained" / "explanations.jsonl").read_text().splitlines()
    of_passage, of_query = map(json.loads, lines)
    # both add up to the score that predict gives, and no token of the prompt is shown
    assert of_passage["logit"] == pytest.approx(scores[0], abs=1e-4)
    assert of_query["logit"] == pytest.approx(scores[0], abs=1e-4)
    shown = [rows[0]["query"][first:last] for _, first, last, _ in of_query["tokens"]]
    assert "".join(shown) == rows[0]["query"].replace(" ", "")


def test_an_interrupted_training_ends_in_the_same_weights(embed, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    how = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 2, "max_steps": None}
    embed(**how, output_dir=whole)
    embed(**how, output_dir=parts)
    # as after a crash: the run has not finished, and its last checkpoints are gone
    record = json.loads((parts / "run.json").read_text())
    (parts / "run.json").write_text(json.dumps(record | {"status": "failed"}))
    (parts / "model.safetensors").unlink()
    (parts / "trainer_state.json").unlink()
    for folder in parts.glob("checkpoint-*"):
        if folder.name != "checkpoint-3":
            for file in sorted(folder.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            folder.rmdir()
    embed(**how, output_dir=parts, resume_from_checkpoint="last")

    one, other = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert one.keys() == other.keys()
    assert all(numpy.array_equal(one[name], other[name]) for name in one)
    assert read_run(parts).restarts[0]["step"] == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"mini_batch_size": 4, "per_device_train_batch_size": 16},
        {"hard_negatives": 2, "negative_margin": 0.0},
        {"matryoshka_dims": [16, 8], "bf16": "true"},
        {"pooling": "cls", "use_peft": "true", "lora_r": 4},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_ways_to_train(embed, tmp_path: Path, changes: dict) -> None:
    metrics = embed(max_steps=6, **changes)
    record = read_run(tmp_path / "out")
    assert metrics["eval_queries"] > 5 and record.save_check["largest_difference"] < 1e-4
    if "matryoshka_dims" in changes:
        table = record.tables["by dimensions"]
        assert [row[0] for row in table["rows"]] == [32, 16, 8]
        assert table["rows"][0][1] == pytest.approx(metrics["eval_ndcg_at_10"], abs=1e-3)
    if "use_peft" in changes:
        assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
        assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_a_cross_encoder_reorders_what_bm25_finds(embed, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    metrics = embed(kind="cross_encoder", max_steps=30, learning_rate=2e-3)
    assert metrics["eval_ndcg_at_10"] > 0 and "before_ndcg_at_10" in metrics
    out = tmp_path / "out"
    assert identify_model(str(out)).kind == "reranker"
    scores = CrossEncoder(str(out), device="cpu").predict([("where is fox ball", "the fox")])
    assert scores.shape == (1,) and 0 < scores[0] < 1


def test_scored_pairs_by_rank_correlation(embed, tmp_path: Path) -> None:
    rows = [
        {"query": f"a small {one}", "passage": f"the {two} was here {n}", "score": float(n % 2)}
        for n, one in enumerate(ANIMALS * 10)
        for two in [one if n % 2 else THINGS[n % 5]]
    ]
    path = write(tmp_path / "scored.jsonl", rows)
    how = {"datasets": path, "hold_out_by": "query", "metric_for_best_model": "spearman"}
    asked = [row | {"query": row["query"] + "?"} for row in rows[:24]]
    held = write(tmp_path / "held.jsonl", asked)
    metrics = embed(**how, eval_datasets=held, eval_fraction=None)
    assert -1 <= metrics["eval_spearman_low"] <= metrics["eval_spearman"] <= 1
    assert metrics["bm25_spearman"] > 0.5 and metrics["eval_pairs"] == 24
    with pytest.raises(ConfigError, match="--mini_batch_size is for in-batch negatives"):
        embed(datasets=path, eval_fraction=0, mini_batch_size=4, output_dir=tmp_path / "no")


def test_no_text_is_on_both_sides(embed, tmp_path: Path) -> None:
    rows = make_rows()
    train = write(tmp_path / "train.jsonl", rows)
    # one held-out row has the passage of a train row, another its query
    held = [rows[0] | {"query": "new one"}, rows[1] | {"passage": "a new box"}]
    metrics = embed(datasets=train, eval_datasets=write(tmp_path / "held.jsonl", held))
    assert metrics["train_rows"] == len(rows) - 2
    left_out = read_run(tmp_path / "out").rows.splits["train"].left_out
    assert sum(left_out.values()) == 2

    # a FAQ: its passages stay, and its queries are new
    metrics = embed(
        datasets=train,
        eval_datasets=tmp_path / "held.jsonl",
        hold_out_by="query",
        output_dir=tmp_path / "faq",
    )
    assert metrics["train_rows"] == len(rows) - 1


def test_equal_passages_never_meet_in_a_batch(embed, tmp_path: Path, monkeypatch) -> None:
    from hfstack.tasks.retrieval import trainer

    # each passage answers three queries
    rows = [
        {"query": f"{word} {row['query']}", "passage": row["passage"]}
        for row in make_rows()[:12]
        for word in ("say", "ask", "tell")
    ]
    seen = []
    check = trainer.batch_problems
    monkeypatch.setattr(
        "hfstack.tasks.retrieval.trainer.batch_problems", lambda one: seen.append(one) or check(one)
    )
    embed(datasets=write(tmp_path / "thrice.jsonl", rows), eval_fraction=0)
    (made,) = seen
    batches = list(made.get_train_dataloader().batch_sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(len(rows)))
    for batch in batches:
        passages = made.train_dataset[list(batch)]["passage"]
        assert len(set(passages)) == len(passages)

    # and the door refuses batches in which they do
    from sentence_transformers.base.sampler import BatchSamplers

    made.args.batch_sampler = BatchSamplers.BATCH_SAMPLER
    assert "twice in a batch" in str(check(made)["no passage is its own negative"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "a fox", "passage": " "}, r"bad.jsonl line 3: passage is empty"),
        ({"query": 7, "passage": "a"}, r"bad.jsonl line 3: .*query"),
        (
            {"query": "a", "passage": "b", "negatives": ["b"]},
            r"bad.jsonl line 3: passage is among its own negatives",
        ),
        (
            {"query": "a", "passage": "b", "negatives": ["c"]},
            r"line 1: negatives is empty, and oth",
        ),
    ],
)
def test_bad_rows_are_named(embed, tmp_path: Path, row: dict, message: str) -> None:
    rows = make_rows()[:2]
    rows += [row]
    if "negatives" in row:
        rows = [{"negatives": []} | one for one in rows]
    path = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError, match=message):
        embed(datasets=path, eval_fraction=0)


def test_triplets_and_causal_models(embed, tiny_llama: Path, tmp_path: Path) -> None:
    rows = [row | {"negatives": [f"no {n}", "none"]} for n, row in enumerate(make_rows())]
    path = write(tmp_path / "triplets.jsonl", rows)
    embed(datasets=path, model_name_or_path=tiny_llama, max_length=32)
    pooling = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode"] == "lasttoken"


@pytest.mark.parametrize("kind", ["bi_encoder", "cross_encoder"])
@pytest.mark.parametrize("lost", ["encoder.layer.1", "embeddings.word_embeddings"])
def test_weights_that_lack_layers_are_refused(
    embed, inputs: Path, tmp_path: Path, kind: str, lost: str
) -> None:
    """sentence-transformers would make new ones of them, and train from noise."""
    shutil.copytree(inputs / "bert", tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    kept = {name: weight for name, weight in weights.items() if f".{lost}." not in name}
    gone = len(weights) - len(kept)
    assert gone == (16 if "layer" in lost else 1)

    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"base lacks {gone} weights.*, such as .*{lost}"):
        embed(model_name_or_path=tmp_path / "base", kind=kind)


@pytest.mark.parametrize("kind", ["bi_encoder", "cross_encoder"])
def test_a_finished_model_that_lost_weights_is_refused(embed, tmp_path: Path, kind: str) -> None:
    embed(kind=kind)
    file = tmp_path / "out" / "model.safetensors"
    weights = load_file(file)
    lost = "encoder.layer.0.output" if kind == "bi_encoder" else "classifier"
    kept = {name: weight for name, weight in weights.items() if lost not in name}
    assert len(kept) < len(weights)

    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lack.* {lost}"):
        load_retriever(ModelConfig(model_name_or_path=str(tmp_path / "out")))
    # a head is newly initialised where it is trained again, and only there
    if kind == "cross_encoder":
        again = {"output_dir": tmp_path / "again", "model_name_or_path": tmp_path / "out"}
        assert embed(kind=kind, **again)["train_loss"] > 0


def test_bad_input_is_one_line(embed, inputs: Path, tiny_llama: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    save_tiny_bert(foreign)
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    (foreign / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "os.x"}]')
    for changes, error, message in [
        ({"query_column": "q"}, DataError, "no column 'q', found .*; set --query_column"),
        ({"model_name_or_path": "bert-1m.json"}, ConfigError, "is an architecture, without weig"),
        ({"model_name_or_path": foreign}, CheckpointError, "names os.x, which is code of its own"),
        ({"model_name_or_path": tmp_path / "none"}, CheckpointError, "no such directory"),
        ({"max_length": 65}, ConfigError, "--max_length 65 is longer than the model's context"),
        ({"matryoshka_dims": [64]}, ConfigError, "embeddings have 32 dimensions"),
        ({"kind": "cross_encoder", "pooling": "cls"}, ConfigError, "are for a bi_encoder"),
        (
            {"kind": "cross_encoder", "model_name_or_path": tiny_llama},
            CheckpointError,
            "is a causal language model .*, but needed is: reranker or",
        ),
        ({"metric_for_best_model": "bleu"}, ConfigError, "choose ndcg_at_10 or loss"),
        ({"label_smoothing_factor": 0.1}, ConfigError, "does nothing here"),
        ({"hard_negatives": -1}, ConfigError, "--hard_negatives must be 0 or above"),
    ]:
        with pytest.raises(error, match=message) as caught:
            embed(**changes, output_dir=tmp_path / str(len(list(tmp_path.iterdir()))))
        assert "\n" not in str(caught.value)
