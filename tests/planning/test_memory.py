"""The count of what a training step holds is that of real tensors, and allocates none."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, BertConfig, LlamaConfig, PreTrainedConfig, T5Config

import hfstack.models.gru  # noqa: F401 - registers the recurrent architectures
from hfstack.models.counting import count_parameters, flops_per_token
from hfstack.planning.by_layers import keep_first_layers
from hfstack.planning.memory import (
    StepTask,
    TrainingStep,
    _Ledger,
    _scaled_phases,
    build_step_model,
    can_checkpoint,
    cuda_rounding,
    forward_flops,
    peak_memory,
    run_steps,
    trace_phases,
    trained_parameters,
)

ARCHITECTURES = Path(__file__).parents[2] / "recipes" / "architectures"


def llama(**changes: int) -> LlamaConfig:
    sizes = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
    } | changes
    return LlamaConfig(
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, **sizes
    )


def bert() -> BertConfig:
    return BertConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=3,
    )


def held_by_real_tensors(config: PreTrainedConfig, step: TrainingStep) -> int:
    """The peak of the same steps with data in the tensors."""
    ledger = _Ledger()
    with ledger:
        model = build_step_model(config, step)
        for count, _ in enumerate(run_steps(model, step, steps=2)):
            if count == 0:
                ledger.forget_peak()
    return sum(ledger.at_peak.values())


@pytest.mark.parametrize(
    "step",
    [
        TrainingStep(4, 16),
        TrainingStep(4, 16, fused_loss=True),
        TrainingStep(4, 16, bf16=True),
        TrainingStep(4, 16, activation_checkpointing=True),
        TrainingStep(2, 16, accumulation=2),
        TrainingStep(4, 16, trains=False),
    ],
    ids=["plain", "fused", "bf16", "checkpointed", "accumulated", "forward"],
)
def test_the_count_is_that_of_real_tensors(step: TrainingStep) -> None:
    assert peak_memory(llama(), step).total == pytest.approx(
        held_by_real_tensors(llama(), step), rel=0.05
    )


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("name", "least"), [("gru-1m", 0.95), ("lstm-1m", 0.75)])
def test_the_count_of_a_recurrent_model(name: str, least: float, bf16: bool) -> None:
    """Count close to the GRU's real tensors; of the LSTM's workspace only a part is touched."""
    config = AutoConfig.from_pretrained(ARCHITECTURES / f"{name}.json")
    step = TrainingStep(16, 16, bf16=bf16, fused_loss=True)
    real = held_by_real_tensors(config, step)
    assert least * real < peak_memory(config, step).total < 1.05 * real


def test_weights_and_adam_are_counted_exactly() -> None:
    memory = peak_memory(llama(), TrainingStep(2, 8))
    parameters = count_parameters(llama()).total
    buffers = sum(b.nbytes for b in build_step_model(llama(), TrainingStep(2, 8)).buffers())
    assert memory.weights == 4 * parameters + buffers
    # Adam counts steps, in a scalar for each tensor.
    tensors = len(list(build_step_model(llama(), TrainingStep(2, 8)).parameters()))
    assert memory.optimizer == 8 * parameters + 4 * tensors


def test_accumulated_gradients_are_held_during_the_next_forward() -> None:
    memory = peak_memory(llama(), TrainingStep(8, 32, accumulation=4))
    assert memory.gradients == 4 * count_parameters(llama()).total
    assert peak_memory(llama(), TrainingStep(8, 32)).gradients < memory.gradients


def test_activations_grow_with_rows_and_shrink_with_checkpointing() -> None:
    def activations(rows: int, **changes: bool) -> int:
        return peak_memory(
            llama(num_hidden_layers=6), TrainingStep(rows, 64, fused_loss=True, **changes)
        ).activations

    assert activations(16) / activations(8) == pytest.approx(2, rel=0.1)
    assert activations(8, activation_checkpointing=True) < 0.5 * activations(8)
    assert activations(8, bf16=True) < activations(8)


def test_an_adapter_has_little_to_optimize() -> None:
    config, step = llama(), TrainingStep(4, 16, lora_rank=4)
    every, trained = trained_parameters(config, step)
    assert trained < 0.5 * every
    assert peak_memory(config, step).optimizer < 8.5 * trained


@pytest.mark.parametrize(
    "task", ["masked_lm", "sequence_classification", "token_classification", "question_answering"]
)
def test_encoders_have_a_step_for_each_task(task: StepTask) -> None:
    step = TrainingStep(4, 16, task=task)
    memory, (parameters, trained) = peak_memory(bert(), step), trained_parameters(bert(), step)
    assert memory.total > 12 * parameters and trained == parameters
    # projections, attention over 16 tokens, MLP
    layer = 2 * 4 * 32 * 32 + 2 * 2 * 16 * 32 + 2 * 2 * 32 * 64
    assert forward_flops(bert(), step) >= 4 * 16 * 2 * layer


def test_seq2seq_has_a_step() -> None:
    config = T5Config(
        vocab_size=97,
        d_model=32,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        d_kv=8,
        decoder_start_token_id=0,
    )
    assert peak_memory(config, TrainingStep(2, 8, task="seq2seq")).total > 0


def test_flops_of_a_language_model_are_those_of_counting() -> None:
    step = TrainingStep(3, 16)
    assert forward_flops(llama(), step) == 3 * 16 * flops_per_token(llama(), 16).forward


TRANSFORMERS = sorted(
    path.stem for path in ARCHITECTURES.glob("*.json") if not path.stem.startswith(("gru", "lstm"))
)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_shipped_transformer_has_the_counts_of_torch(name: str) -> None:
    """Take a real model where it is small, and attention that torch's counter sees whole."""
    config = AutoConfig.from_pretrained(ARCHITECTURES / f"{name}.json")
    config._attn_implementation = "eager"
    task: StepTask = {"bert": "masked_lm", "bart": "seq2seq", "t5": "seq2seq"}.get(
        config.model_type, "causal_lm"
    )  # pyright: ignore[reportAssignmentType]
    step = TrainingStep(2, 16, task=task)
    with torch.device("cpu" if name.endswith("-1m") or task == "seq2seq" else "meta"):
        model = build_step_model(config, step).eval()
    assert (
        trained_parameters(config, step)
        == (sum(weight.numel() for weight in model.parameters()),) * 2
    )

    names = ["input_ids", "labels"]
    if task == "causal_lm":
        names.append("attention_mask")  # else upstream asks for it
    batch = {name: torch.ones(2, 16, dtype=torch.long, device=model.device) for name in names}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**batch)
    assert forward_flops(config, step) == counter.get_total_flops()


def test_a_recurrent_model_is_counted_and_cannot_recompute() -> None:
    config = AutoConfig.from_pretrained(ARCHITECTURES / "gru-1m.json")
    step = TrainingStep(2, 8, fused_loss=True)
    assert peak_memory(config, step).weights >= 4 * count_parameters(config).total
    assert not can_checkpoint(config, step) and can_checkpoint(llama(), step)


def test_nothing_is_allocated_for_a_model_that_would_not_fit() -> None:
    large = llama(hidden_size=8192, intermediate_size=28672, num_hidden_layers=2)
    memory = peak_memory(large, TrainingStep(1, 4096, bf16=True, fused_loss=True))
    assert memory.total > 20 * 2**30


@pytest.mark.parametrize(
    ("step", "tied"),
    [
        (TrainingStep(4, 16), True),
        pytest.param(TrainingStep(4, 16), False, marks=pytest.mark.slow),
        pytest.param(TrainingStep(2, 64, bf16=True, fused_loss=True), True, marks=pytest.mark.slow),
        pytest.param(
            TrainingStep(4, 32, activation_checkpointing=True, accumulation=2),
            True,
            marks=pytest.mark.slow,
        ),
        pytest.param(TrainingStep(1, 4, accumulation=2), False, marks=pytest.mark.slow),
        (TrainingStep(4, 16, lora_rank=4, weight_dtype=torch.bfloat16), True),
        (TrainingStep(4, 16, trains=False), True),
        pytest.param(
            TrainingStep(4, 16, task="sequence_classification"), True, marks=pytest.mark.slow
        ),
    ],
    ids=["plain", "untied", "bf16", "recomputed", "short", "adapter", "forward", "classifier"],
)
def test_a_deep_model_scaled_from_shallow_ones_is_counted_exactly(
    step: TrainingStep, tied: bool
) -> None:
    deep = llama(num_hidden_layers=8)
    deep.tie_word_embeddings = tied
    deep.pad_token_id = 0
    phases = trace_phases(deep, step)
    traced = max(sum(phase.values()) - phase["rounding"] for phase in phases)
    assert _scaled_phases(deep, step) is not None
    assert peak_memory(deep, step).total == traced


def test_unequal_layers_are_traced_whole() -> None:
    types = ["full_attention"] * 9 + ["sliding_attention"]
    config = llama(num_hidden_layers=10)
    config.layer_types = types
    assert keep_first_layers(config, 3) is None
    config.layer_types = types[:1] * 10
    assert keep_first_layers(config, 3).layer_types == types[:3]  # pyright: ignore
    assert keep_first_layers(llama(num_hidden_layers=7), 3) is None


@pytest.mark.parametrize(
    ("size", "added"),
    [
        (0, 0),
        (1, 511),
        (512, 0),
        (1000, 24),
        (10 * 2**20 - 1, 1),
        (10 * 2**20, 0),
        (10 * 2**20 + 1, 2 * 2**20 - 1),
        (4096 * 14336 * 2, 0),
    ],
)
def test_blocks_are_rounded_as_torchs_allocator_on_a_gpu_does(size: int, added: int) -> None:
    assert cuda_rounding(size) == added


def test_an_adapter_on_named_layers_alone_is_counted() -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    step = TrainingStep(1, 8, lora_rank=4, lora_targets=("q_proj", "v_proj"))
    _, trained = trained_parameters(config, step)
    assert trained == 2 * 2 * 4 * (32 + 32)  # layers x targets x rank x (in + out)
