"""Search end to end on a tiny encoder: an index finds, resumes, and refuses another model."""

import csv
import json
from pathlib import Path

import numpy
import pytest

from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.tasks.retrieval.index import INDEX_FILE, PassageIndex, build_index
from tests.conftest import SENTENCES
from tests.tiny_encoder import save_tiny_bert

WORDS = sorted({word for text in SENTENCES for word in text.split()})


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of sentence-transformers, and passages with an id each."""
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("inputs")
    made = SentenceTransformer(str(save_tiny_bert(folder / "bert")), device="cpu")
    made.save_pretrained(str(folder / "model"), create_model_card=False)
    texts = [f"{WORDS[n % len(WORDS)]} {WORDS[n * 7 % len(WORDS)]} home" for n in range(40)]
    rows = [{"id": n, "passage": text} for n, text in enumerate(dict.fromkeys(texts))]
    write(folder / "passages.jsonl", rows)
    return folder


@pytest.fixture
def search(run_recipe, inputs: Path, tmp_path: Path):
    def call(*more: object, **changes: object) -> dict[str, float]:
        settings = {
            "model_name_or_path": inputs / "model",
            "datasets": inputs / "passages.jsonl",
            "keep_columns": "id",
            "output_dir": tmp_path / "out",
        } | changes
        given = (f"--{k}={v}" for k, v in settings.items() if v is not None)
        return run_recipe("search", *given, *more)

    return call


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_passage_is_nearest_to_itself_and_a_built_index_is_asked_again(
    search, inputs: Path, tmp_path: Path, capsys
) -> None:
    passages = read(inputs / "passages.jsonl")
    asked = write(tmp_path / "asked.jsonl", [{"query": row["passage"]} for row in passages[:3]])
    metrics = search("--query", passages[5]["passage"], queries_file=asked, top=2)
    assert metrics == {"passages": len(passages), "queries": 4}

    hits = read(tmp_path / "out" / "results.jsonl")
    assert [(hit["rank"], hit["id"]) for hit in hits[::2]] == [(1, 5), (1, 0), (1, 1), (1, 2)]
    assert all(hit["score"] == pytest.approx(1, abs=1e-5) for hit in hits[::2])
    assert passages[5]["passage"] in capsys.readouterr().out

    # again, from the index alone, as a table
    search(
        index=tmp_path / "out" / "index",
        datasets=None,
        keep_columns=None,
        queries_file=asked,
        top=2,
        format="csv",
        output_dir=tmp_path / "again",
    )
    with (tmp_path / "again" / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in table] == [str(hit["id"]) for hit in hits[2:]]


def test_equal_rows_are_one_passage(search, inputs: Path, tmp_path: Path, caplog) -> None:
    answers = ["Send it back within 30 days.", "We ship abroad.", "Send it back within 30 days."]
    rows = [{"id": n % 2, "passage": text} for n, text in enumerate(answers)]
    faq = write(tmp_path / "faq.jsonl", [*rows, {"id": 7, "passage": answers[0]}])
    with caplog.at_level("INFO"):
        metrics = search("--query", answers[0], datasets=faq, top=3)

    # the same text with another id is another row
    hits = read(tmp_path / "out" / "results.jsonl")
    assert metrics["passages"] == 3
    assert {hit["id"] for hit in hits[:2]} == {0, 7} and hits[2]["id"] == 1
    assert "1 rows are equal to one before, and left out" in caplog.text

    metrics = search("--query", "x", datasets=faq, keep_columns=None, output_dir=tmp_path / "b")
    assert metrics["passages"] == 2


def test_approximate_and_reranked(search, inputs: Path, tmp_path: Path) -> None:
    passages = read(inputs / "passages.jsonl")
    asked = write(tmp_path / "asked.jsonl", [{"query": row["passage"]} for row in passages])
    search(queries_file=asked, top=1, search="approximate")
    hits = read(tmp_path / "out" / "results.jsonl")
    assert (tmp_path / "out" / "index" / "nearest.faiss").is_file()
    assert [hit["id"] for hit in hits] == [row["id"] for row in passages], "so few are all found"

    from sentence_transformers import CrossEncoder

    made = CrossEncoder(str(inputs / "bert"), num_labels=1, device="cpu")
    made.save_pretrained(str(tmp_path / "reranker"), create_model_card=False)
    search(queries_file=asked, top=3, reranker=tmp_path / "reranker", output_dir=tmp_path / "b")
    for place in range(0, 9, 3):
        scores = [hit["score"] for hit in read(tmp_path / "b" / "results.jsonl")[place : place + 3]]
        assert scores == sorted(scores, reverse=True)


def test_building_goes_on_where_it_stopped(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "id": n} for n in range(23)]
    calls: list[int] = []

    def embed(texts) -> numpy.ndarray:
        calls.append(len(texts))
        if stop_after and len(calls) > stop_after[0]:
            raise KeyboardInterrupt
        numbers = [int(text.split()[1]) for text in texts]
        angles = numpy.array(numbers) / 23
        return numpy.stack([numpy.cos(angles), numpy.sin(angles)], axis=1).astype("float32")

    how = {"text_column": "text", "keep": ["id"], "model": "m", "model_hash": "h", "part_rows": 5}
    stop_after: list[int] = []
    build_index(tmp_path / "whole", rows, embed, identity="a", **how)

    stop_after, calls[:] = [2], []
    with pytest.raises(KeyboardInterrupt):
        build_index(tmp_path / "parts", rows, embed, identity="a", **how)
    with pytest.raises(CheckpointError, match="its building was interrupted, run it again"):
        PassageIndex(tmp_path / "parts", model_hash="h")
    # what a crash leaves behind the last whole part is cut off
    with (tmp_path / "parts" / "vectors.f32").open("ab") as file:
        file.write(b"torn")
    with (tmp_path / "parts" / "passages.jsonl").open("ab") as file:
        file.write(b'{"text": "to')

    stop_after, calls[:] = [], []
    build_index(tmp_path / "parts", rows, embed, identity="a", **how)
    assert sum(calls) == 23 - 10, "two parts were there"
    for name in ("vectors.f32", "passages.jsonl", "offsets.u64", INDEX_FILE):
        files = [(tmp_path / folder / name).read_bytes() for folder in ("whole", "parts")]
        assert files[0] == files[1], name

    # with another identity it is begun anew
    calls[:] = []
    build_index(tmp_path / "parts", rows[:7], embed, identity="b", **how)
    assert sum(calls) == 7
    index = PassageIndex(tmp_path / "parts", model_hash="h")
    assert index.passage(6) == rows[6]
    with pytest.raises(CheckpointError, match=r"was built with another model \(m\), whose vectors"):
        PassageIndex(tmp_path / "parts", model_hash="other")


def test_exact_search_equals_a_sort_of_all_scores(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("hfstack.tasks.retrieval.index._SCANNED_ROWS", 7)
    generator = numpy.random.default_rng(0)
    vectors = generator.normal(size=(50, 4)).astype("float32")
    vectors[20] = vectors[3]  # of equal scores the first is named first
    rows = [{"text": str(n)} for n in range(50)]
    how = {"text_column": "text", "keep": [], "model": "m", "model_hash": "h", "identity": "a"}
    build_index(tmp_path, rows, lambda texts: vectors[[int(t) for t in texts]], **how)

    queries = generator.normal(size=(6, 4)).astype("float32")
    scores, numbers = PassageIndex(tmp_path, model_hash="h").find(queries, 10)
    whole = queries @ vectors.T
    assert numbers.tolist() == numpy.argsort(-whole, axis=1, kind="stable")[:, :10].tolist()
    assert scores == pytest.approx(numpy.take_along_axis(whole, numbers, axis=1))


def test_served_on_this_machine_alone(inputs: Path, tmp_path: Path, search) -> None:
    from fastapi.testclient import TestClient
    from trl import ModelConfig

    from hfstack.tasks.retrieval.index import hash_model
    from hfstack.tasks.retrieval.search import Searcher, load_search_models
    from hfstack.tasks.retrieval.server import make_search_app

    search()
    model, _ = load_search_models(ModelConfig(str(inputs / "model")), None)
    index = PassageIndex(tmp_path / "out" / "index", model_hash=hash_model(model))
    app = make_search_app(Searcher(model, index), top=2)

    client = TestClient(app, base_url="http://127.0.0.1")
    passage = read(inputs / "passages.jsonl")[4]["passage"]
    found = client.get("/search", params={"query": passage}).json()["results"]
    assert len(found) == 2 and found[0]["id"] == 4
    several = client.post("/search", json={"queries": [passage, "home"], "top": 1}).json()
    assert [len(hits) for hits in several["results"]] == [1, 1]

    for body in ({"queries": "home"}, {"queries": [""]}, {"queries": ["a"], "top": 0}, {}):
        assert client.post("/search", json=body).status_code == 422
    # a page elsewhere whose name leads here
    other = TestClient(app, base_url="http://evil.example")
    assert other.get("/search", params={"query": "home"}).status_code == 400


def test_bad_input_is_one_line(search, inputs: Path, tmp_path: Path) -> None:
    nothing = write(
        tmp_path / "no_text.jsonl", [{"passage": "a", "id": 1}, {"passage": "", "id": 2}]
    )
    asked = write(tmp_path / "asked.jsonl", [{"question": "a"}])
    for changes, error, message in [
        ({"datasets": None}, ConfigError, "name what is searched: --datasets passages.jsonl"),
        ({"datasets": nothing}, DataError, "passage 2: passage is '', not text"),
        ({"passage_column": "text"}, DataError, "has no column 'text'.*set --passage_column"),
        ({"queries_file": asked}, DataError, "query 1: query is missing, found question; set"),
        ({"index": tmp_path, "datasets": None}, CheckpointError, "holds no complete index: search"),
        ({"top": 0}, ConfigError, "--top must be at least 1"),
        ({"reranker": inputs / "model"}, CheckpointError, "is an embedding model"),
        ({"model_name_or_path": tmp_path / "none"}, CheckpointError, "no such directory"),
    ]:
        with pytest.raises(error, match=message) as caught:
            search(**changes, output_dir=tmp_path / f"out{len(list(tmp_path.iterdir()))}")
        assert "\n" not in str(caught.value)
