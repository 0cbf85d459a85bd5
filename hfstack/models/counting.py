"""Count the parameters and FLOPs of an architecture, and find a device's peak.

Everything is computed from the config: weights are never allocated.

Conventions. One multiply-add is 2 FLOPs. Only matrix products are counted, as
`torch.utils.flop_counter` does; norms, softmax, activations and rotary embeddings are not.
Attention is counted over the full T x T matrix, causal or not, as in PaLM (Chowdhery et al. 2022,
arXiv:2204.02311, appendix B), so numbers can be compared with published ones. Training costs 3
times the forward: the backward has one product for the inputs and one for the weights.
"""

import copy
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hfstack.logs import get_logger

_logger = get_logger(__name__)


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model; shared ones are counted once."""

    total: int
    embedding: int
    """Token and position tables, and the output matrix when it is not the token table (Kaplan et
    al. 2020)."""
    non_embedding: int


@dataclass(frozen=True)
class FlopCount:
    """FLOPs per token of a sequence of a given length."""

    forward: float
    train: float
    """3 times the forward."""
    method: Literal["formula", "measured"]
    """`measured`: torch's counter ran one forward, since this architecture has no formula."""


def _build_stock_model(config: PreTrainedConfig, *, device: str = "meta") -> PreTrainedModel:
    """Build the causal language model with attention that the counter sees whole."""
    config = copy.deepcopy(config)  # from_config writes the attention and dtype into it
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False
        )


def count_parameters(config: PreTrainedConfig) -> ParameterCount:
    """Count the parameters of the causal language model that a config describes.

    Args:
        config: any config that `AutoModelForCausalLM` knows, with the tokenizer's `vocab_size`.

    Returns:
        total, embedding, and their difference.
    """
    model = _build_stock_model(config)
    tables = {
        id(module.weight): module.weight
        for module in model.modules()
        if isinstance(module, nn.Embedding)
    }
    head = model.get_output_embeddings()
    if head is not None:
        tables[id(head.weight)] = head.weight  # once where it is tied

    total = sum(parameter.numel() for parameter in model.parameters())
    embedding = sum(table.numel() for table in tables.values())
    return ParameterCount(total=total, embedding=embedding, non_embedding=total - embedding)


def _llama_forward(config: PreTrainedConfig, sequence_length: int) -> float:
    """Count Llama, and architectures that differ from it in biases and norms alone."""
    width = config.hidden_size
    # Qwen2 has no head_dim.
    head_width = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_width, config.num_key_value_heads * head_width

    projections = 2 * width * (2 * queries + 2 * keys)  # query and output; key and value
    attention = 2 * 2 * sequence_length * queries  # scores, and the sum of values
    mlp = 3 * 2 * width * config.intermediate_size
    layers = config.num_hidden_layers * (projections + attention + mlp)
    return layers + 2 * width * config.vocab_size


def _gpt2_forward(config: PreTrainedConfig, sequence_length: int) -> float:
    """Count GPT-2: projections, attention and MLP of each layer, and the head."""
    width = config.n_embd
    inner = 4 * width if config.n_inner is None else config.n_inner
    layer = 2 * width * 4 * width + 2 * 2 * sequence_length * width + 2 * 2 * width * inner
    return config.n_layer * layer + 2 * width * config.vocab_size


def _recurrent_forward(config: PreTrainedConfig, *, gates: int) -> float:
    """Count a GRU or LSTM: each weight is used once per token, at any length."""
    width, narrow = config.hidden_size, config.embedding_size or config.hidden_size
    projection = 0 if narrow == width else 2 * width * narrow
    head_width = narrow if config.tie_word_embeddings else width
    maps = 2 if config.tie_word_embeddings else 1  # after the embeddings, and before a tied head
    cells = config.num_hidden_layers * 2 * gates * 2 * width * width
    return cells + maps * projection + 2 * head_width * config.vocab_size


_FORWARD: dict[str, Callable[[PreTrainedConfig, int], float]] = {
    "gpt2": _gpt2_forward,
    "hfstack_gru": lambda config, _: _recurrent_forward(config, gates=3),
    "hfstack_lstm": lambda config, _: _recurrent_forward(config, gates=4),
    "llama": _llama_forward,
    "mistral": _llama_forward,
    "qwen2": _llama_forward,
    "qwen3": _llama_forward,
}


def flops_per_token(config: PreTrainedConfig, sequence_length: int) -> FlopCount:
    """Count the FLOPs that one token costs, averaged over a sequence.

    An architecture without a formula here is measured with torch's counter, and a log line says so.

    Args:
        config: any config that `AutoModelForCausalLM` knows.
        sequence_length: tokens per sequence, T; attention costs grow with it.

    Returns:
        forward and training FLOPs per token, and how they were found.
    """
    formula = _FORWARD.get(config.model_type)
    if formula is not None:
        forward = float(formula(config, sequence_length))
        return FlopCount(forward=forward, train=3 * forward, method="formula")

    forward = measure_forward_flops(config, sequence_length) / sequence_length
    _log_measured(config.model_type, sequence_length)
    return FlopCount(forward=forward, train=3 * forward, method="measured")


@cache  # once, however many sizes are tried
def _log_measured(model_type: str, sequence_length: int) -> None:
    _logger.info(
        "no FLOP formula for model_type %r: one forward of %d tokens is measured",
        model_type,
        sequence_length,
    )


def measure_forward_flops(config: PreTrainedConfig, sequence_length: int) -> float:
    """Count the matrix products of one forward of one sequence with torch's counter.

    It runs on the meta device, without memory or time; an architecture whose code looks at values
    cannot run there and runs once on the CPU instead. What torch counts for a recurrent cell
    depends on the kernel it picks, often 0, so cells are counted here: each weight once per token.

    Args:
        config: any config that `AutoModelForCausalLM` knows.
        sequence_length: tokens in the sequence, T.

    Returns:
        FLOPs of the whole forward.
    """
    try:
        return _run_counter(config, sequence_length, device="meta")
    except (NotImplementedError, RuntimeError) as error:
        _logger.info(
            "the meta device cannot run model_type %r (%s): using the CPU", config.model_type, error
        )
        return _run_counter(config, sequence_length, device="cpu")


def _run_counter(config: PreTrainedConfig, sequence_length: int, *, device: str) -> float:
    """Run a forward under torch's counter, and count recurrent cells by weights."""
    model = _build_stock_model(config, device=device).eval()
    input_ids = torch.zeros(1, sequence_length, dtype=torch.long, device=device)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        # Given a mask, upstream does not look at the position ids' values, which the meta device
        # does not have.
        model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False)

    flops, counts = counter.get_total_flops(), counter.get_flop_counts()
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            weights = sum(
                weight.numel()
                for part, weight in module.named_parameters()
                if part.startswith("weight")
            )
            counted = sum(counts.get(f"{type(model).__name__}.{name}", {}).values())
            flops += 2 * weights * sequence_length - counted
    return float(flops)


# Dense peaks in TFLOP/s, tensor cores with fp32 accumulation, from the vendor's data sheets; where
# a sheet prints the number with sparsity, half of it. The first match wins, so variants come before
# their family.
#   A100: nvidia-a100-datasheet (2021)
#   H100: nvidia-h100-tensor-core-gpu-datasheet (2023; SXM, PCIe, NVL)
#   H200: hpc-datasheet-h200 (2024; SXM, NVL)
#   L4: l4-gpu-datasheet (2023)
#   T4: t4-tensor-core-datasheet (2019)
#   V100: volta-v100-datasheet (2020; SXM2, PCIe)
#   RTX 3090: NVIDIA Ampere GA102 whitepaper v2
#   RTX 4090: NVIDIA Ada GPU architecture whitepaper v2
_PEAK_TFLOPS: tuple[tuple[str, dict[str, float]], ...] = (
    (r"\bA100\b", {"bfloat16": 312, "float16": 312, "tf32": 156, "float32": 19.5}),
    (r"\bH100 NVL\b", {"bfloat16": 835.5, "float16": 835.5, "tf32": 417.5, "float32": 60}),
    (r"\bH100 PCIe\b", {"bfloat16": 756.5, "float16": 756.5, "tf32": 378, "float32": 51}),
    (r"\bH100\b", {"bfloat16": 989.5, "float16": 989.5, "tf32": 494.5, "float32": 67}),
    (r"\bH200 NVL\b", {"bfloat16": 835.5, "float16": 835.5, "tf32": 417.5, "float32": 60}),
    (r"\bH200\b", {"bfloat16": 989.5, "float16": 989.5, "tf32": 494.5, "float32": 67}),
    (r"\bL4\b", {"bfloat16": 121, "float16": 121, "tf32": 60, "float32": 30.3}),
    (r"\bT4\b", {"float16": 65, "float32": 8.1}),
    (r"\bRTX 3090$", {"bfloat16": 71, "float16": 71, "tf32": 35.6, "float32": 35.6}),
    (r"\bRTX 4090$", {"bfloat16": 165.2, "float16": 165.2, "tf32": 82.6, "float32": 82.6}),
    (r"\bV100-SXM2\b", {"float16": 125, "float32": 15.7}),
    (r"\bV100-PCIE\b", {"float16": 112, "float32": 14}),
)


def peak_flops_per_s(device: torch.device | str, dtype: torch.dtype) -> float:
    """Return the FLOP/s that matrix products can reach on one device.

    A known accelerator has its vendor's dense peak. Any other device, a CPU included, is measured:
    the best of repeated large matrix products in a few short bursts, over at most 0.4 s, once per
    process; a log line says so, and whether other work took part of the processor meanwhile.

    Args:
        device: `cpu`, `cuda`, `cuda:1`, `mps`...
        dtype: the type that the products run in: torch.bfloat16 under bf16 autocast. For
            torch.float32 on a GPU the TF32 peak is returned when
            `torch.get_float32_matmul_precision()` allows TF32.

    Returns:
        FLOP/s. On a CPU it is what this process's threads reach now, so processes that share the
        cores lower it.
    """
    device = torch.device(device)
    if device.type == "cuda":
        uses_tf32 = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
        number_type = "tf32" if uses_tf32 else str(dtype).removeprefix("torch.")
        known = datasheet_tflops(torch.cuda.get_device_name(device), number_type)
        if known is not None:
            return known * 1e12
    return _measure_peak_flops(str(device), dtype, torch.get_num_threads())


def datasheet_tflops(device_name: str, number_type: str) -> float | None:
    """Return the dense peak of a known accelerator in TFLOP/s, or None.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it.
        number_type: `bfloat16`, `float16`, `tf32` or `float32`.
    """
    for pattern, peaks in _PEAK_TFLOPS:
        if re.search(pattern, device_name):
            return peaks.get(number_type)
    return None


# of the measurement of a peak: short, because a scheduler gives slices of a few milliseconds
_BURSTS, _BURST_S, _PAUSE_S = 5, 0.05, 0.02
# of the processor; below it the machine is busy with other work
_LEAST_SHARE = 0.85


@cache
def _measure_peak_flops(device: str, dtype: torch.dtype, threads: int) -> float:
    """Time square matrix products in bursts, for about a quarter of a second in all.

    Their size doubles while one takes under 4 ms. Between the bursts this process sleeps, so that
    on a busy machine one of them may begin with a fresh slice of time.
    """
    best, size, share = 0.0, 256, 0.0
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    for _ in range(_BURSTS):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - begin < _BURST_S:
            started = time.perf_counter()
            product = matrix @ matrix
            _ = product[0, 0].item()  # waits for the device
            seconds = time.perf_counter() - started
            best = max(best, 2 * size**3 / seconds)

            if seconds < 0.004 and size < 4096:
                size *= 2
                matrix = torch.ones(size, size, dtype=dtype, device=device)

        elapsed = time.perf_counter() - begin
        share = max(share, (time.process_time() - begin_cpu) / (threads * elapsed))
        time.sleep(_PAUSE_S)

    _logger.info(
        "peak of %s in %s measured with %d threads: %.3g FLOP/s", device, dtype, threads, best
    )
    if device == "cpu" and share < _LEAST_SHARE:
        _logger.warning(
            "other work left %.0f %% of %d threads to this measurement: the peak may be higher, "
            "and mfu lower than it is reported",
            100 * share,
            threads,
        )
    return best
