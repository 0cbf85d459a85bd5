"""The explain recipe: attributions that add up to the logit difference, for encoders and causal
models, as a page.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForSequenceClassification,
    set_seed,
)
from trl import ModelConfig

from hfstack.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from hfstack.tasks.classification.attributions import explain_text
from hfstack.tasks.classification.model import ClassifierInfo, load_trained_classifier
from hfstack.tasks.preferences.encode import encode_answer
from tests.tiny_encoder import save_tiny_bert


def save_classifier(base: Path, folder: Path) -> Path:
    """Save an untrained classifier of three labels whose logits depend on the text."""
    set_seed(0)
    names = {0: "low", 1: "mid", 2: "high"}
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, id2label=names)
    for weights in model.parameters():
        if weights.dim() == 2:
            # as drawn for training, the logits hardly depend on the text
            weights.data.normal_(std=0.3)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    ClassifierInfo("single_label_classification", list(names.values())).save(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    return save_classifier(save_tiny_bert(folder / "base"), folder / "classifier")


@pytest.fixture(scope="module")
def causal(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tiny_llama, tmp_path_factory.mktemp("causal") / "classifier")


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_attributions_add_up_to_the_logit_difference(request: pytest.FixtureRequest, kind: str):
    model, tokenizer, info = load_trained_classifier(
        ModelConfig(str(request.getfixturevalue(kind)))
    )
    text = "the brave fox was happy"
    one = explain_text(model, tokenizer, info, (text,))
    logits = model(**tokenizer(text, return_tensors="pt")).logits[0].detach()
    assert one.label == info.names[int(logits.argmax())]
    assert one.logit == pytest.approx(float(logits.max()), abs=1e-4)
    assert abs(one.logit - one.baseline_logit) > 0.01
    assert sum(score for *_, score in one.tokens) == pytest.approx(one.attributed, abs=1e-6), (
        "special tokens have none"
    )
    assert one.relative_delta <= 0.01
    assert abs(one.delta) <= 0.01 * abs(one.logit - one.baseline_logit)
    other = explain_text(model, tokenizer, info, (text,), label="mid")
    assert other.logit == pytest.approx(float(logits[1]), abs=1e-4)
    coarse = explain_text(model, tokenizer, info, (text,), steps=1, tolerance=1e-9, most_steps=1)
    assert abs(coarse.delta) > abs(one.delta) or one.delta == 0


def test_a_neutral_text_has_no_attribution(encoder: Path):
    model, tokenizer, info = load_trained_classifier(ModelConfig(str(encoder)))
    one = explain_text(model, tokenizer, info, ("[MASK] [MASK]",))
    assert one.attributed == 0 and one.delta == 0


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_tokens_of_a_pair_stand_in_their_own_text(request: pytest.FixtureRequest, kind: str):
    model, tokenizer, info = load_trained_classifier(
        ModelConfig(str(request.getfixturevalue(kind)))
    )
    one = explain_text(model, tokenizer, info, ("a red ball", "the owl"))
    for index, text in enumerate(one.texts):
        covered = "".join(
            text[first:last] for which, first, last, _ in one.tokens if which == index
        )
        assert covered.replace(" ", "") == text.replace(" ", "")


def test_the_page_and_its_numbers(run_recipe, encoder: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("a kind owl <b>", "the forest"))
    )
    metrics = run_recipe(
        "explain",
        f"--model_name_or_path={encoder}",
        f"--datasets={rows}",
        "--texts",
        "the red hill",
        f"--output_dir={tmp_path / 'out'}",
    )
    assert (
        metrics["texts"] == 3
        and metrics["complete_share"] == 1
        and metrics["largest_relative_delta"] <= 0.01
    )
    assert (tmp_path / "out" / "run.log").read_text().count("INFO attributions ") == 3
    page = (tmp_path / "out" / "explanations.html").read_text()
    assert "<b>" not in page and "&lt;" in page
    assert page.count("<article>") == 3
    assert page.count("<dt>") == 3 * len(
        load_trained_classifier(ModelConfig(str(encoder)))[2].names
    )
    assert 'data-score="+' in page and "light-dark(" in page and "<script" not in page
    lines = [
        json.loads(line)
        for line in (tmp_path / "out" / "explanations.jsonl").read_text().splitlines()
    ]
    for line in lines:
        difference = line["logit"] - line["baseline_logit"]
        assert sum(score for *_, score in line["tokens"]) - difference == pytest.approx(
            line["delta"], abs=1e-5
        )


def test_rewards_and_answers_add_up(run_recipe, tiny_llama: Path, tmp_path: Path) -> None:
    """Of a reward over both texts, of an answer's log-probability over its prompt."""
    folder = tmp_path / "reward"
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    set_seed(0)
    config = AutoConfig.from_pretrained(tiny_llama, num_labels=1)
    model = LlamaForSequenceClassification(config)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    rows = tmp_path / "pairs.jsonl"
    row = {"prompt": "Name a fox. ", "chosen": "The red fox.", "rejected": "A ball."}
    rows.write_text(json.dumps(row) + "\n")
    metrics = run_recipe(
        "explain",
        *(f"--model_name_or_path={folder}", f"--datasets={rows}"),
        f"--output_dir={tmp_path / 'out'}",
    )
    assert metrics["texts"] == 2 and metrics["complete_share"] == 1
    lines = [
        json.loads(line)
        for line in (tmp_path / "out" / "explanations.jsonl").read_text().splitlines()
    ]
    loaded = LlamaForSequenceClassification.from_pretrained(folder)
    for line, side in zip(lines, ("chosen", "rejected"), strict=True):
        assert line["texts"][0] == row["prompt"] and line["texts"][1].startswith(row[side])
        ids, _, _ = encode_answer(tokenizer, row["prompt"], row[side])
        with torch.no_grad():
            reward = float(loaded(torch.tensor([ids])).logits[0, 0])
        assert line["label"] == "reward" and line["logit"] == pytest.approx(reward, abs=1e-5)
        covered = "".join(line["texts"][which][a:b] for which, a, b, _ in line["tokens"])
        assert covered == row["prompt"] + row[side], "every word has its share"

    # of a language model: the log-probability of an answer, by the words of the prompt alone
    answered = run_recipe(
        "explain",
        *(f"--model_name_or_path={tiny_llama}", "--texts=A kind fox", "--answers= was happy."),
        f"--output_dir={tmp_path / 'answer'}",
    )
    assert answered["complete_share"] == 1
    line = json.loads((tmp_path / "answer" / "explanations.jsonl").read_text())
    prompt, whole = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("A kind fox", "A kind fox was happy.")
    )
    whole.append(tokenizer.eos_token_id)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tiny_llama)(torch.tensor([whole])).logits
    scores = logits[0].log_softmax(-1)
    wanted = sum(float(scores[i - 1, whole[i]]) for i in range(len(prompt), len(whole)))
    assert line["logit"] == pytest.approx(wanted, abs=1e-4)
    assert {which for which, *_ in line["tokens"]} == {0}
    with pytest.raises(ConfigError, match="--answers are to --texts: 1 answers, 0 texts"):
        run_recipe("explain", f"--model_name_or_path={tiny_llama}", "--answers=a")


def test_mistakes(
    run_recipe, encoder: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, tokenizer, info = load_trained_classifier(ModelConfig(str(encoder)))
    with pytest.raises(DataError, match=r"--label 'hot': the model knows low, mid, high"):
        explain_text(model, tokenizer, info, ("the fox",), label="hot")
    with pytest.raises(DataError, match=r"nothing to explain: the text is empty"):
        explain_text(model, tokenizer, info, (" ",))
    with pytest.raises(ConfigError, match=r"nothing to explain: give --texts"):
        run_recipe("explain", f"--model_name_or_path={encoder}", f"--output_dir={tmp_path / 'a'}")
    masked = save_tiny_bert(tmp_path / "masked")
    with pytest.raises(CheckpointError, match=r"BertForMaskedLM.*but a sequence classifier is"):
        run_recipe(
            "explain",
            f"--model_name_or_path={masked}",
            "--texts=a",
            f"--output_dir={tmp_path / 'b'}",
        )
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(
        MissingExtraError, match=r"captum is not installed; .* 'hfstack\[explain\]'"
    ):
        explain_text(model, tokenizer, info, ("the fox",))
