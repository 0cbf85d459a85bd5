"""Fixtures that every test may use: a tiny tokenizer, a tiny model, the real data, and a recipe
called in-process.
"""

import importlib.util
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# a test never downloads; set before any Hugging Face import
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from hfstack.logs import setup_logging

ROOT = Path(__file__).parent.parent
POST_TRAINING = ("sft", "distill", "dpo", "kto", "orpo", "ppo", "rloo", "grpo")
SENTENCES = [
    "Once upon a time a small fox found a red ball near the river.",
    "The owl was kind, so she gave the ball back to the fox.",
    "A brave rabbit ran up the hill and saw the whole forest.",
    "They were happy and went home when the sun was low.",
]


@pytest.fixture(autouse=True)
def hfstack_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let caplog see each line of hfstack's log once, whatever test ran before.

    pytest listens at the root, and at each logger that does not hand its lines on when a test
    begins.
    """
    setup_logging()
    monkeypatch.setattr(logging.getLogger("hfstack"), "propagate", True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; the test is skipped with a message when it is absent."""
    folder = Path(os.environ.get("HFSTACK_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set HFSTACK_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium that logs its requests; the test is skipped with a message without it."""
    paths = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if None in paths.values() or importlib.util.find_spec("selenium") is None:
        pytest.skip("no browser: install chromium, chromium-driver and the extra dev")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = paths["chromium"]
    quiet = ("disable-background-networking", "disable-component-update", "no-first-run")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", *quiet):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(paths["chromedriver"]))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 300 tokens with eos `<|endoftext|>` and its own pad token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<|endoftext|>", "<|pad|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|pad|>"
    )


@pytest.fixture(scope="session")
def tiny_llama(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with an untrained 2-layer Llama (context 128) and the tiny tokenizer."""
    set_seed(0)
    folder = tmp_path_factory.mktemp("tiny-llama")
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run_recipe(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, float]]:
    """Call a recipe in this process: `run_recipe("clean", "--output_dir", ...)` returns its
    metrics.

    The options are parsed as on the command line, so a user's mistake raises the HfstackError that
    it would print. Of a recipe that trains, each row that was read is used, or is left out with a
    reason.
    """

    def call(name: str, *argv: object) -> dict[str, float]:
        from hfstack.config import parse
        from hfstack.recipe_settings import load_recipe, settings_classes

        path = ROOT / "recipes" / f"{name}.py"
        flags = [str(argument) for argument in argv]
        # what is measured before and after training has tests of its own, and costs each run time
        if name in POST_TRAINING and not any("--probe_rows" in flag for flag in flags):
            flags += ["--probe_rows", "0"]
        monkeypatch.setattr(sys, "argv", [str(path), *flags])
        module = load_recipe(path)
        settings = parse(*settings_classes(module), argv=flags)
        metrics = module.main(*settings)

        # a recipe that trains nothing may choose its folder itself
        folder = next((each.output_dir for each in settings if hasattr(each, "output_dir")), None)
        if folder is not None and (Path(folder) / "run.json").is_file():
            check_row_counts(Path(folder))
        return metrics

    return call


def check_row_counts(folder: Path) -> None:
    """Fail where rows of a run were neither used nor left out with a reason."""
    from hfstack.runs.record import read_run

    record = read_run(folder)
    groups = record.settings.values()
    uncounted = any(group.get("streaming") or group.get("dry_run") for group in groups)
    if any("num_train_epochs" in group for group in groups) and not uncounted:
        assert record.rows.splits["train"].used > 0 and record.rows.columns_used, folder
        marked = r"^  (trained|label|labels|asked|answer|passage|chosen) +\S"
        # each rung of a ladder is a run of its own
        rungs = [read_run(file.parent).example for file in folder.glob("rungs/*/run.json")]
        example = record.example or next(filter(None, rungs), "")
        assert re.search(marked, example, re.MULTILINE), (folder, example)

    for name, counts in record.rows.splits.items():
        if counts.made is None:
            assert counts.read == counts.used + sum(counts.left_out.values()), (folder, name)
        assert counts.used >= 0 and min(counts.left_out.values(), default=1) > 0, (folder, name)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--record-golden` writes the losses that tests/recipes/test_golden.py compares with."""
    parser.addoption(
        "--record-golden", action="store_true", help="record golden losses instead of comparing"
    )
