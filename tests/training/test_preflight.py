"""Before the first step of a plain Trainer: each problem is planted and named, a sound Trainer
passes, and the table of docs/preflight.md says which recipe asks which rule.
"""

import ast
import logging
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    CONFIG_MAPPING,
    AutoModelForTokenClassification,
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    ReformerConfig,
    ReformerModelWithLMHead,
    Trainer,
    TrainingArguments,
)
from transformers import BertConfig as Config
from transformers import BertForTokenClassification as Tagger

from hfstack.errors import ConfigError, DataError
from hfstack.tasks.shared.token_tasks import token_loss_func
from hfstack.training import checks, preflight
from hfstack.training.preflight import accumulation_problems, checked, label_problems
from tests.conftest import ROOT

SIZES: Any = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
NO_DROPOUT: Any = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}


def rows(count: int = 8, *, classes: int = 3, seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows of 6 tokens that begin with token 2; row n has n % 5 + 1 scored labels, so parts of a
    batch differ.
    """
    tokens = torch.randint(
        5, 50, (count, 6), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    return [
        {
            "input_ids": [2, *ids[1:]],
            "labels": [place % classes if place <= number % 5 else -100 for place in range(6)],
        }
        for number, ids in enumerate(tokens)
    ]


def build(
    tmp_path, train: list[dict[str, list[int]]], *, model: Any = None, **settings: Any
) -> Trainer:
    torch.manual_seed(0)
    loss = settings.pop(
        "compute_loss_func", token_loss_func(settings.get("label_smoothing_factor", 0.0))
    )
    held_out = settings.pop("held_out", None)
    arguments: dict[str, Any] = {
        "max_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
    }
    arguments |= {"save_strategy": "no", "disable_tqdm": True, "max_grad_norm": 1e9, "seed": 3}
    return Trainer(
        model=model or Tagger(Config(vocab_size=50, num_labels=3, **SIZES, **NO_DROPOUT)),
        args=TrainingArguments(output_dir=str(tmp_path), **(arguments | settings)),
        train_dataset=Dataset.from_list(train),
        eval_dataset=None if held_out is None else Dataset.from_list(held_out),
        data_collator=collate,
        compute_loss_func=loss,
    )


def test_a_weight_that_a_family_does_not_save_is_not_trained(tmp_path: Path) -> None:
    config = MarianConfig(
        vocab_size=50,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        pad_token_id=0,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        decoder_start_token_id=0,
    )
    MarianMTModel(config).save_pretrained(tmp_path)
    model = MarianMTModel.from_pretrained(tmp_path)
    positions = model.model.encoder.embed_positions.weight
    assert positions.requires_grad, "upstream freezes it now: take our freezing out"
    checked(build(tmp_path, rows(), model=model), WORDS)
    assert not positions.requires_grad
    assert model.model.shared.weight.requires_grad


@pytest.mark.parametrize(("family", "warned"), [("fnet", True), ("bert", False)])
def test_an_encoder_that_reads_padding_is_named(
    family: str, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {**SIZES, "vocab_size": 50, "num_labels": 3, "pad_token_id": 0}
    config = CONFIG_MAPPING[family](**sizes, hidden_dropout_prob=0.0)
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_config(config)
    unequal = [
        {name: values[: 4 + number % 3] for name, values in row.items()}
        for number, row in enumerate(rows())
    ]
    monitored = "padding changes what FNetForTokenClassification reads"
    with caplog.at_level(logging.WARNING):
        checked(build(tmp_path, unequal, model=model), WORDS)
    assert any(monitored in message for message in caplog.messages) == warned


class Words:
    """As much of a tokenizer as the rules ask for."""

    bos_token_id = 2
    cls_token_id = None

    def get_vocab(self) -> dict[str, int]:
        return {f"w{index}": index for index in range(50)}


WORDS: Any = Words()


def checked_tags(trainer: Trainer) -> Trainer:
    """Go through the door as a recipe with three classes of tokens does."""
    found = label_problems(trainer.train_dataset, 3) | accumulation_problems(trainer)
    return checked(trainer, WORDS, found)


def test_rows_that_fill_no_grid_of_positions_are_refused(tmp_path: Path) -> None:
    config = ReformerConfig(
        vocab_size=60,
        hidden_size=16,
        attention_head_size=8,
        num_attention_heads=2,
        attn_layers=["local"],
        feed_forward_size=16,
        axial_pos_shape=[2, 4],
        axial_pos_embds_dim=[8, 8],
        is_decoder=True,
    )
    reformer = ReformerModelWithLMHead(config)
    preflight._refuse_other_lengths(reformer, [8, 8])
    with pytest.raises(ConfigError, match="rows of 8 tokens alone .* the first one has 6"):
        preflight._refuse_other_lengths(reformer, [6, 8])
    with pytest.raises(ConfigError, match="these are of different lengths"):
        preflight._refuse_other_lengths(reformer, [])


def test_a_sound_trainer_is_handed_back(tmp_path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "hfstack")
    trainer = build(tmp_path, rows(), gradient_accumulation_steps=2, held_out=rows(seed=1))
    before = torch.random.get_rng_state()
    assert checked_tags(trainer) is trainer
    assert torch.equal(torch.random.get_rng_state(), before)
    assert trainer.model is not None and trainer.model.training
    assert set(caplog.messages) == {
        "checked: some label is scored, labels are classes, accumulation keeps the loss, "
        "every id has an embedding, no doubled first token",
        "weights that are trained: 10,803 in float32",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {"input_ids": [2, 2, *row["input_ids"][2:]]}, "begin with two"),
        (lambda row: row | {"labels": [-100] * 6}, "all labels of all"),
        (
            lambda row: row | {"labels": [3, *row["labels"][1:]]},
            "first 3 in row 1, are not among 0 .. 2",
        ),
    ],
)
def test_a_planted_fault_is_refused(tmp_path, change, message: str):
    with pytest.raises(DataError, match=message):
        checked_tags(build(tmp_path, [change(row) for row in rows()]))


def test_an_id_without_an_embedding_is_refused(tmp_path):
    small = Tagger(Config(vocab_size=49, num_labels=3, **SIZES))
    with pytest.raises(DataError, match="ids up to 49 but the embedding has 49 rows"):
        checked(build(tmp_path, rows(), model=small), WORDS)


def test_a_model_that_averages_over_its_part_of_the_batch_is_refused(tmp_path):
    trainer = build(tmp_path, rows(), gradient_accumulation_steps=2, compute_loss_func=None)
    assert trainer.model_accepts_loss_kwargs, "transformers counts this model's loss as scaled"
    with pytest.raises(
        DataError, match=r"accumulation keeps the loss: the loss of one batch is .* in parts"
    ):
        checked_tags(trainer)
    # nothing is accumulated
    checked_tags(build(tmp_path, rows(), compute_loss_func=None))


def test_held_out_rows_that_are_trained_on_are_counted(tmp_path, caplog: pytest.LogCaptureFixture):
    checked(build(tmp_path, rows(), held_out=rows(10)[6:] + rows(2, seed=1)), WORDS)
    assert "2 of 6 different held-out rows are trained on too" in caplog.text


def writer() -> BartForConditionalGeneration:
    sizes: Any = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    }
    heads: Any = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0}
    return BartForConditionalGeneration(BartConfig(vocab_size=50, d_model=16, **sizes, **heads))


def test_dropout_that_is_no_module_is_turned_off_where_it_is_asked_for(tmp_path):
    for asked in (False, True):
        model = writer()
        trainer = build(tmp_path, rows(), model=model, compute_loss_func=None)
        layer: Any = model.model.decoder.layers[0]
        layer.activation_dropout = 0.3  # a number that is handed to a function while it trains
        trainer.args.disable_dropout = asked
        checked(trainer, WORDS)
        assert layer.activation_dropout == (0.0 if asked else 0.3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["tag", "write"])
def test_parts_of_a_batch_add_up_to_it(tmp_path, kind: str, smoothing: float):
    found = []
    for size, parts in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        trainer = build(
            tmp_path,
            rows(),
            model=writer() if kind == "write" else None,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            label_smoothing_factor=smoothing,
        )
        if kind == "write":
            shift: Any = trainer.model.prepare_decoder_input_ids_from_labels  # pyright: ignore
            trainer.data_collator = lambda some, shift=shift: (
                (batch := collate(some)) | {"decoder_input_ids": shift(labels=batch["labels"])}
            )
        checked(trainer, WORDS).train()
        found.append(
            (trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"])
        )
    assert found[0] == pytest.approx(found[1], rel=1e-4)


CHECKS = ROOT / "hfstack" / "training" / "checks.py"
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


@cache
def definitions(file: Path) -> tuple[dict[str, ast.AST], dict[str, tuple[str, str]]]:
    """Return the functions and classes of a file, and what it imports from hfstack by name."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = {
        node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    imported = {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hfstack.")
        for alias in node.names
    }
    return own, imported


def named_in(file: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Return the functions of hfstack that a function names, as (file, function)."""
    own, imported = definitions(file)
    for node in ast.walk(own[name]):
        module, function = "", ""
        if isinstance(node, ast.Name) and node.id in own:
            yield file, node.id
        elif isinstance(node, ast.Name) and node.id in imported:
            module, function = imported[node.id]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module, function = ".".join(imported.get(node.value.id, ())), node.attr

        found = ROOT / f"{module.replace('.', '/')}.py"
        if module and found.is_file():
            yield found, function


@cache
def reached_by(recipe: Path) -> set[tuple[Path, str]]:
    """Return the functions of hfstack that the calls of a recipe lead to."""
    seen: set[tuple[Path, str]] = set()
    waiting = [(recipe, "main")]
    while waiting:
        one = waiting.pop()
        if one not in seen and one[1] in definitions(one[0])[0]:
            seen.add(one)
            waiting += named_in(*one)
    return seen


def rules_asked_by(recipe: Path) -> set[str]:
    """Return the rules of hfstack.training.checks that the calls of a recipe lead to."""
    seen = reached_by(recipe)
    return {name for file, name in seen if file == CHECKS and not name.startswith("_")} - {
        "preflight"
    }


def trains(recipe: Path) -> bool:
    """Return whether a recipe, or what it calls, checks a Trainer and trains with it."""
    return any(name == "checked" for _, name in reached_by(recipe))


# where several recipes of one task train
TASKS = ROOT / "hfstack" / "tasks"
SHARED_DOORS = [TASKS / "rl" / "online.py", TASKS / "preferences" / "alignment.py"]


def test_every_recipe_that_trains_goes_through_the_door() -> None:
    assert {path.stem for path in RECIPES if trains(path)} >= {"ppo", "rloo", "grpo", "dpo", "kto"}
    for recipe in [*RECIPES, *SHARED_DOORS]:
        text = recipe.read_text(encoding="utf-8")
        trained = len(re.findall(r"\.train\(", text))
        assert trained or recipe not in SHARED_DOORS
        doors = re.split(r"checked\(trainer, (?:parts\.)?tokenizer, .*problems\)\.train\(", text)
        assert len(doors) - 1 == trained, recipe.name
        # and saves what it has trained right behind it, before anything is scored
        before_scores = re.split(r"# evaluate|\.evaluate\(", "".join(doors[1:]))[0]
        saved = len(re.findall(r"save_(?:trained|embedder)\(run, trainer, ", before_scores))
        assert saved == trained, recipe.name


def test_what_upstream_refuses_of_a_trainer_is_one_line_in_every_recipe() -> None:
    inside = re.compile(
        r"^( *)with refusals_of_upstream\(\):\n(?:\1 .*\n|\n)*?\1 +trainer = ", re.MULTILINE
    )
    by_class = {
        "fine_tuning.SFTTrainerByTokens(": "sft/setup.py",
        "Trainer(EachPairCounts, ": "preferences/pair_counting.py",
        "PairwiseRewardTrainer(": "preferences/pair_counting.py",
    }
    by_class |= dict.fromkeys(("PPOTrainer(", "online.group_trainer("), "rl/ppo/checkpointed.py")

    for recipe in [path for path in RECIPES if trains(path)]:
        text = recipe.read_text(encoding="utf-8")
        files = {file for name, file in by_class.items() if name in text}
        assert files or inside.search(text), recipe.name
        for file in files:
            assert "@refusals_of_upstream()" in (TASKS / file).read_text(encoding="utf-8")


def test_the_table_names_the_recipes_that_ask_each_rule() -> None:
    training = [path for path in RECIPES if trains(path)]
    asked = {recipe.stem: rules_asked_by(recipe) for recipe in training}
    page = (ROOT / "docs" / "preflight.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `(\w+)` \|[^|]+\| ([^|]+) \|$", page, re.MULTILINE))
    rules = {name for name in definitions(CHECKS)[0] if not name.startswith("_")} - {"preflight"}

    assert set(table) == rules
    for rule, cell in table.items():
        recipes = [recipe for recipe, found in asked.items() if rule in found]
        said = list(asked) if cell == "all" else cell.split(", ")
        assert said == recipes, f"docs/preflight.md: {rule} is asked by {', '.join(recipes)}"


def test_the_page_says_how_much_is_checked_and_what_is_only_warned_of() -> None:
    page = " ".join((ROOT / "docs" / "preflight.md").read_text(encoding="utf-8").split())
    assert f"accumulation keeps the loss: {checks.accumulation_keeps_loss(1.09, 4.38)}" in page
    assert f"The first {preflight.CHECKED_ROWS:,} rows are checked" in page
    assert f"up to {preflight.COMPARED_ROWS:,} for shared rows" in page
    assert f"renders up to {checks._LIKE_CONVERSATIONS} conversations of each order" in page

    # recipes without the rule of shared rows warn of them; embed has left such rows out
    training = [path for path in RECIPES if trains(path) and path.stem != "embed"]
    warn = [
        one.stem for one in training if "train_and_eval_are_disjoint" not in rules_asked_by(one)
    ]
    said = re.search(r"- ([\w, ]+) and (\w+) warn of held-out rows", page)
    assert said and [*said[1].split(", "), said[2]] == warn


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_not_trained(tmp_path, dtype: torch.dtype):
    model = Tagger(Config(vocab_size=50, num_labels=3, **SIZES, **NO_DROPOUT)).to(dtype)
    trainer = build(tmp_path, rows(), model=model)
    with pytest.raises(ConfigError, match="would be trained, .*: set --dtype float32, with --bf16"):
        checked_tags(trainer)

    # where an fp32 copy of them is kept they may be, and frozen beneath an adapter
    trainer.is_deepspeed_enabled = True
    assert checked_tags(trainer) is trainer
    trainer.is_deepspeed_enabled = False
    model.requires_grad_(False)
    model.classifier.float().requires_grad_(True)
    assert checked_tags(trainer) is trainer
