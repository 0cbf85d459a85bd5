"""Run one recipe on one family, and judge the result: it works, or one line says why not."""

import importlib.util
import inspect
import json
import math
import shutil
import sys
import traceback
import typing
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from hfstack.config import parse
from hfstack.errors import HfstackError
from hfstack.models.sequence_head import register_classifier
from tests.zoo.families import CAUSAL, ENCODER, ENCODER_DECODER, at_most
from tests.zoo.plain_loss import (
    FirstStep,
    first_step,
    plain_loss,
    plain_odds_loss,
    plain_text_loss,
)

RECIPES = Path(__file__).parents[2] / "recipes"
SECONDS = 120  # of the slowest cell

_EXACT = 1e-6  # PPO's first KL is 0

# PPO's first ratio is 1, up to rounding: the old log-probabilities are those of decoding with a
# cache, which sums in another order than the full pass. Near -ln 320 = -5.8, of the zoo's
# vocabulary, fp32 numbers are 4.8e-7 apart, and either pass may be two of them off.
_RATIO = 4 * 2**-21
_LOSS = 1e-5  # a share of the loss of plain transformers
_UNTRAINED = {"dpo": 0.6931472, "kto": 0.5}  # ln 2 and 1/2: policy and reference are the same
_ODDS_WEIGHT = 0.1  # --beta of orpo
PUBLISH = "publish"  # of a model that was trained, into a folder, and read from there
_SHARED = {
    "save_strategy": "no",
    "report_to": "none",
    "bf16": "false",
    "seed": "1",
    "logging_steps": "1",
    "per_device_train_batch_size": "2",
}
_TUNED = _SHARED | {
    "eval_fraction": "0.2",
    "max_length": "48",
    "max_steps": "1",
    "gradient_accumulation_steps": "1",
    "activation_checkpointing": "false",
}
_SFT = _TUNED | {"as_chat": "false", "packing": "false", "answer_tokens": "8"}
_PPO = _SHARED | {
    "as_chat": "false",
    "eval_fraction": "0",
    "total_episodes": "4",
    "per_device_train_batch_size": "4",
    "gradient_accumulation_steps": "1",
    "num_mini_batches": "1",
    "num_ppo_epochs": "1",
    "max_completion_length": "6",
    "learning_rate": "1e-4",
}

_ENCODED = _SHARED | {"eval_fraction": "0.2", "max_length": "32", "max_steps": "1"}

# What a model is measured by, whatever trained it: the model of the zoo as it is. A document has
# fewer tokens than a window, so that each is read in one pass.
_MEASURED: dict[str, tuple[str, str, dict[str, str]]] = {
    "evaluate": ("evaluate_lm", "lm", {"batch_size": "4"}),
    "generate": (
        "generate",
        "prompts",
        {"max_new_tokens": "6", "temperature": "0", "batch_size": "4"},
    ),
}
_READ_BY = {"evaluate_lm": "eval_datasets", "generate": "prompts_file"}

# of each kind of model, the name of a column: recipe, rows, settings
Columns = dict[str, tuple[str, str, dict[str, str]]]
_CAUSAL: Columns = {
    "pretrain": (
        "pretrain_clm",
        "lm",
        _SHARED
        | {"eval_fraction": "0.2", "block_size": "48", "isolate_documents": "true"}
        | {"max_steps": "1", "sample_tokens": "6"},
    ),
    "sft": ("sft", "sft", _SFT),
    "sft packed": ("sft", "sft", _SFT | {"packing": "true", "max_length": "96"}),
    "sft lora": ("sft", "sft", _SFT | {"use_peft": "true", "lora_target_modules": "all-linear"}),
    "dpo": ("dpo", "pairs", _TUNED | {"sample_tokens": "6"}),
    "kto": ("kto", "kto", _TUNED | {"sample_tokens": "6"}),
    "orpo": ("orpo", "pairs", _TUNED | {"sample_tokens": "6", "remove_unused_columns": "false"}),
    "ppo": ("ppo", "prompts", _PPO | {"critic": "separate"}),
    "ppo shared": ("ppo", "prompts", _PPO | {"critic": "shared"}),
    "rloo": ("rloo", "prompts", _PPO | {"num_generations": "2"}),
    "grpo": ("grpo", "prompts", _PPO | {"num_generations": "2"}),
    "reward": ("reward", "pairs", _TUNED),
    "classify": ("classify", "labels", _ENCODED),
    "publish": (PUBLISH, "sft", _SFT),
    "tag": ("tag", "tags", _ENCODED),
    "answer": ("answer", "spans", _ENCODED | {"stride": "8"}),
    **_MEASURED,
}
_ENCODER: Columns = {
    "pretrain_mlm": (
        "pretrain_mlm",
        "lm",
        _SHARED | {"eval_fraction": "0.2", "block_size": "48", "max_steps": "1"},
    ),
    "classify": ("classify", "labels", _ENCODED),
    "tag": ("tag", "tags", _ENCODED),
    "answer": ("answer", "spans", _ENCODED | {"stride": "8"}),
    "reward": ("reward", "pairs", _TUNED),
    "publish": (PUBLISH, "labels", _ENCODED),
    "evaluate": _MEASURED["evaluate"],
    "generate": ("generate", "masked", _MEASURED["generate"][2]),
}
_TRANSLATED = _SHARED | {"eval_fraction": "0.2", "max_steps": "1"}
_ENCODER_DECODER: Columns = {
    "seq2seq": ("seq2seq", "translations", _TRANSLATED),
    "publish": (PUBLISH, "translations", _TRANSLATED),
    **_MEASURED,
}
# what is published of each kind: the recipe that trains it, and the class that reads it
_PUBLISHED: dict[str, tuple[str, Any]] = {
    CAUSAL: ("sft", AutoModelForCausalLM),
    ENCODER: ("classify", AutoModelForSequenceClassification),
    ENCODER_DECODER: ("seq2seq", AutoModelForSeq2SeqLM),
}
CELLS: dict[str, Columns] = {
    CAUSAL: _CAUSAL,
    ENCODER: _ENCODER,
    ENCODER_DECODER: _ENCODER_DECODER,
}


@dataclass
class Cell:
    """The result of one recipe on one family."""

    kind: str
    family: str
    name: str
    state: str  # works, refused, traceback or differs
    reason: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the cell as one line."""
        return json.dumps(asdict(self))


def run_cell(kind: str, family: str, name: str, model: Path, rows: dict[str, Path]) -> Cell:
    """Run a recipe on a family's model, and return the result; what it writes is deleted."""
    recipe, file, settings = CELLS[kind][name]
    output = rows[file].parent / f"{kind}-{family}-{recipe}"
    settings = settings | {
        "model_name_or_path": str(model),
        _READ_BY.get(recipe, "datasets"): str(rows[file]),
        "output_dir": str(output),
    }
    said = StringIO()
    try:
        with at_most(SECONDS), redirect_stdout(said), redirect_stderr(said), first_step() as step:
            _call(_PUBLISHED[kind][0] if recipe == PUBLISH else recipe, settings)
            figures = _figures(output) | _loss_difference(recipe, model, step)
            if recipe == PUBLISH:
                figures["published"] = _publish(output, _PUBLISHED[kind][1])
            if recipe == "evaluate_lm":
                figures["plain"] = _text_loss_difference(output, model, rows[file])
        return Cell(kind, family, name, *_judge(recipe, figures), figures)
    except HfstackError as error:
        return Cell(kind, family, name, "refused", " ".join(str(error).split()))
    except Exception as error:  # what a user must never see
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
        reason = f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:160]}"
        return Cell(kind, family, name, "traceback", reason)
    finally:
        for folder in (output, _published(output), _card(output)):
            shutil.rmtree(folder, ignore_errors=True)


def _publish(output: Path, auto_class: Any) -> float:
    """Publish a run into a folder; return how far the logits of what is read there are."""
    to = f"file://{_published(output)}"
    _call(PUBLISH, {"run": str(output), "repo": to, "output_dir": str(_card(output))})
    register_classifier(AutoConfig.from_pretrained(output))

    inputs = {"input_ids": torch.arange(5, 17)[None]}  # (1, T)
    if auto_class is AutoModelForSeq2SeqLM:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        one, other = (
            auto_class.from_pretrained(folder).eval()(**inputs).logits
            for folder in (output, _published(output))
        )
    return float((one - other).abs().max())


def _published(output: Path) -> Path:
    return output.with_name(f"{output.name}-published")


def _card(output: Path) -> Path:
    return output.with_name(f"{output.name}-card")


def _call(recipe: str, settings: dict[str, str]) -> Any:
    """Call a recipe in this process, as its command would."""
    module = _load(recipe)
    if recipe in ("ppo", "rloo", "grpo"):
        module.__dict__["REWARDS"] = [count_letters]
    flags = [part for key, value in settings.items() for part in (f"--{key}", value)]
    hints = typing.get_type_hints(module.main)
    kinds = (hints[name] for name in inspect.signature(module.main).parameters)

    before = sys.argv
    sys.argv = [str(RECIPES / f"{recipe}.py"), *flags]
    try:
        return module.main(*parse(*kinds, argv=flags))
    finally:
        sys.argv = before


def count_letters(completions: list[str], **columns: Any) -> list[float]:
    """Reward answers by their letters, which a newly initialised model varies in."""
    return [sum(letter.isalpha() for letter in text) / 10 for text in completions]


_loaded: dict[str, ModuleType] = {}


def _load(recipe: str) -> ModuleType:
    """Return the module of a recipe, loaded once."""
    if recipe not in _loaded:
        spec = importlib.util.spec_from_file_location(f"zoo_{recipe}", RECIPES / f"{recipe}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        _loaded[recipe] = module
    return _loaded[recipe]


def _figures(output: Path) -> dict[str, float]:
    """Return the numbers of the first step, and how far the saved model is from it."""
    state, record = output / "trainer_state.json", json.loads((output / "run.json").read_text())
    if not state.is_file():  # a recipe that measures
        return {"loss": float(record["metrics"].get("eval_loss", 0.0))}
    first = json.loads(state.read_text())["log_history"][0]
    wanted = ("loss", "kl", "policy/ratio", "sampler/gap")
    figures = {key: float(first[key]) for key in wanted if key in first}
    saved = record.get("save_check") or {}
    if "largest_difference" in saved:
        figures["saved"] = saved["largest_difference"]
    return figures


def _text_loss_difference(output: Path, model: Path, texts: Path) -> float:
    """Return how far evaluate_lm's loss is from that of plain transformers, as a share of it."""
    found = json.loads((output / "run.json").read_text())["metrics"]["eval_loss"]
    rows = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    expected = plain_text_loss(model, rows)
    return abs(found - expected) / expected


def _loss_difference(recipe: str, model: Path, step: FirstStep) -> dict[str, float]:
    """Return how far the first loss is from that of plain transformers, as a share of it."""
    if step.adds_router_loss:
        return {"router": 1.0}
    if recipe not in ("pretrain_clm", "sft", "orpo") or step.loss is None:
        return {}
    if recipe == "orpo":
        expected = plain_odds_loss(model, step.batch, weight=_ODDS_WEIGHT)
    else:
        expected = plain_loss(model, step.batch)
    return {"plain": abs(step.loss - expected) / expected}


def _judge(recipe: str, figures: dict[str, float]) -> tuple[str, str]:
    """Hold the numbers of a run against what must be true of it; return state and reason."""
    problems = []
    if not abs(figures.get("plain", 0.0)) <= _LOSS:
        problems.append(f"the loss differs by {figures['plain']:.2g} from plain transformers'")
    if not abs(figures.get("policy/ratio", 1.0) - 1) <= _RATIO:
        problems.append(f"the first ratio is {figures['policy/ratio']:.8g}")
    if not abs(figures.get("kl", 0.0)) <= _EXACT:
        problems.append(f"the first KL is {figures['kl']:.3g}")
    adds_router_loss = "router" in figures
    untrained = _UNTRAINED.get(recipe)
    if untrained and not adds_router_loss and not abs(figures["loss"] - untrained) <= _LOSS:
        problems.append(f"the first loss is {figures['loss']:.7g}, not {untrained:.7g}")
    if figures.get("published", 0.0) != 0:
        problems.append(f"what is published differs by {figures['published']:.2g}")
    if not math.isfinite(figures.get("loss", 0.0)):
        problems.append("the loss is no number")
    return ("differs", "; ".join(problems)) if problems else ("works", "")
