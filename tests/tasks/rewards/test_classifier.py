"""The reward that a classifier gives."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hfstack.errors import CheckpointError, ConfigError
from hfstack.tasks.classification.model import ClassifierInfo
from hfstack.tasks.rewards.classifier import ClassifierReward
from hfstack.tasks.rewards.prepare import prepare_rewards
from tests.conftest import SENTENCES
from tests.tiny_encoder import save_tiny_bert


def save_classifier(folder: Path, problem_type: str) -> Path:
    torch.manual_seed(0)
    save_tiny_bert(folder)
    names = {0: "sad", 1: "happy"}
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, id2label=names)
    model.classifier.weight.data.normal_()
    model.save_pretrained(folder)
    ClassifierInfo(problem_type, list(names.values()), max_length=24, temperature=2.0).save(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifier"), "single_label_classification")


def test_the_reward_is_the_calibrated_probability_of_the_label(classifier: Path) -> None:
    reward = ClassifierReward(str(classifier), "happy", batch_size=3)
    completions = [f" {text}" for text in SENTENCES]
    found = reward(["Listen."] * 4, completions)
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    for text, value in zip(completions, found, strict=True):
        encoded = tokenizer("Listen." + text, truncation=True, max_length=24, return_tensors="pt")
        expected = (model(**encoded).logits[0] / 2.0).softmax(0)[1]
        assert value == pytest.approx(expected.item(), abs=1e-6)
    assert len({round(value, 6) for value in found}) > 1


def test_it_reads_the_completion_alone_when_told(classifier: Path) -> None:
    alone = ClassifierReward(str(classifier), "happy", with_prompt=False)
    assert alone(["Listen."], [SENTENCES[0]]) == pytest.approx(alone(["Other."], [SENTENCES[0]]))
    conversation = [[{"role": "assistant", "content": SENTENCES[0]}]]
    assert alone([[{"role": "user", "content": "Go"}]], conversation) == pytest.approx(
        alone([""], [SENTENCES[0]])
    )


def test_labels_that_may_all_hold_are_judged_each_alone(tmp_path: Path) -> None:
    folder = str(save_classifier(tmp_path, "multi_label_classification"))
    sums = [
        sum(pair)
        for pair in zip(
            *(ClassifierReward(folder, name)([""] * 4, SENTENCES) for name in ("sad", "happy")),
            strict=True,
        )
    ]
    assert any(abs(total - 1) > 1e-3 for total in sums)


def test_it_is_logged_under_its_label(classifier: Path) -> None:
    (prepared,) = prepare_rewards([ClassifierReward(str(classifier), "happy")])
    assert prepared.__name__ == "happy"
    assert 0 < prepared(prompts=[""], completions=[SENTENCES[0]])[0] < 1


def test_a_label_that_is_not_there_is_named(classifier: Path, tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match="has no label 'joyful'; its labels: sad, happy"):
        ClassifierReward(str(classifier), "joyful")
    with pytest.raises(CheckpointError, match="but a sequence classifier is needed here"):
        ClassifierReward(str(tiny_llama), "happy")
