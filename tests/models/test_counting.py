"""Parameter and FLOP counts against numbers worked by hand and against torch's own counter."""

import logging
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from hfstack.models import counting
from hfstack.models.counting import (
    count_parameters,
    datasheet_tflops,
    flops_per_token,
    measure_forward_flops,
    peak_flops_per_s,
)
from hfstack.models.gru import GRUConfig, LSTMConfig

LLAMA_STYLE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=64),
    "gpt2_inner": GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=64, n_inner=48
    ),
    "llama": LlamaConfig(**LLAMA_STYLE),
    "llama_wide_heads": LlamaConfig(**LLAMA_STYLE, head_dim=16, tie_word_embeddings=True),
    "mistral": MistralConfig(**LLAMA_STYLE, head_dim=None),
    "qwen2": Qwen2Config(**LLAMA_STYLE),
    "qwen3": Qwen3Config(**LLAMA_STYLE),
    "gru": GRUConfig(vocab_size=50, embedding_size=12, hidden_size=16, num_hidden_layers=2),
    "gru_untied": GRUConfig(
        vocab_size=50, embedding_size=12, hidden_size=16, tie_word_embeddings=False
    ),
    "lstm": LSTMConfig(vocab_size=50, hidden_size=16, num_hidden_layers=3),
}


def test_parameters_by_hand() -> None:
    # tokens 50 * 32 + positions 64 * 32 = 3648; a layer: 32 * 96 + 96 + 32 * 32 + 32 (attention) +
    # 32 * 128 + 128 + 128 * 32 + 32 (MLP) + 4 * 32 (two norms) = 12704; the last norm 64; the head
    # is the token table
    count = count_parameters(CONFIGS["gpt2"])
    assert (count.embedding, count.non_embedding, count.total) == (3648, 2 * 12704 + 64, 29120)
    # tokens 50 * 12; E -> H and back 2 * 12 * 16; a layer: 3 * 16 * (16 + 16) + 6 * 16 + 2 * 16 =
    # 1664; last norm 32
    count = count_parameters(CONFIGS["gru"])
    assert (count.embedding, count.total) == (600, 600 + 384 + 2 * 1664 + 32)
    # an untied head is a second table: 50 * 12 in, 50 * 16 out
    assert count_parameters(CONFIGS["gru_untied"]).embedding == 600 + 800


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_equal_those_of_the_model_on_the_cpu(name: str) -> None:
    config = CONFIGS[name]
    before = config.to_dict()
    count = count_parameters(config)
    assert count.total == sum(
        p.numel() for p in AutoModelForCausalLM.from_config(config).parameters()
    )
    assert config.to_dict() == before


def test_flops_by_hand() -> None:
    # a layer, each product twice its weights: query and output 2 * 2 * 32 * 32, key and value 2 * 2
    # * 32 * 16, scores and values 2 * 2 * 10 * 32, three MLP maps 3 * 2 * 32 * 40; the head 2 * 32
    # * 50
    layer = 4096 + 2048 + 1280 + 7680
    count = flops_per_token(CONFIGS["llama"], 10)
    assert count.forward == 3 * layer + 3200
    assert count.train == 3 * count.forward
    assert count.method == "formula"
    # an LSTM layer: four gates, each two 16 x 16 maps, at any length
    assert flops_per_token(CONFIGS["lstm"], 10).forward == 3 * 2 * 4 * 2 * 256 + 2 * 16 * 50
    assert flops_per_token(CONFIGS["lstm"], 999) == flops_per_token(CONFIGS["lstm"], 10)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("length", [1, 16, 37])
def test_formulas_equal_the_measured_forward(name: str, length: int) -> None:
    assert flops_per_token(CONFIGS[name], length).forward * length == measure_forward_flops(
        CONFIGS[name], length
    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen2"])
def test_train_flops_equal_a_real_training_step(name: str) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager")
    input_ids = torch.zeros(2, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids, use_cache=False).logits.float().logsumexp(-1).sum().backward()
    assert flops_per_token(CONFIGS[name], 16).train * 32 == counter.get_total_flops()


def test_an_architecture_without_a_formula_is_measured_and_said_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = GPTNeoXConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    with caplog.at_level(logging.INFO, logger="hfstack"):
        count = flops_per_token(config, 16)
    assert count.method == "measured"
    # a layer: 2 * 4 * 32 * 32 (attention maps) + 4 * 16 * 32 (scores and values) + 2 * 2 * 32 * 64
    # (MLP); the head
    assert count.forward == 2 * (8192 + 2048 + 8192) + 2 * 32 * 50
    assert (
        "no FLOP formula for model_type 'gpt_neox': one forward of 16 tokens is measured"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("device_name", "number_type", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100 80GB PCIe", "float32", 19.5),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA H100 NVL", "tf32", 417.5),
        ("NVIDIA H200", "float16", 989.5),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "bfloat16", None),
        ("Tesla T4", "float16", 65),
        ("Tesla T4", "bfloat16", None),
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("Tesla V100-PCIE-32GB", "float32", 14),
        ("NVIDIA GeForce RTX 3090", "bfloat16", 71),
        ("NVIDIA GeForce RTX 3090 Ti", "bfloat16", None),
        ("NVIDIA GeForce RTX 4090", "float32", 82.6),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16", None),
    ],
)
def test_datasheet_peaks(device_name: str, number_type: str, tflops: float | None) -> None:
    assert datasheet_tflops(device_name, number_type) == tflops


def test_a_gpu_is_looked_up_by_name_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    assert peak_flops_per_s("cuda", torch.bfloat16) == 312e12
    assert peak_flops_per_s("cuda:1", torch.float32) == 19.5e12
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_flops_per_s("cuda", torch.float32) == 156e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Unheard Of")
    monkeypatch.setattr(counting, "_measure_peak_flops", lambda device, dtype, threads: 7.0)
    assert peak_flops_per_s("cuda", torch.bfloat16) == 7.0


def test_a_busy_machine_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """CPU seconds far below threads times seconds are those of a process that had to wait."""
    waits = iter(range(1000))
    monkeypatch.setattr(counting.time, "process_time", lambda: 0.01 * next(waits))
    with caplog.at_level(logging.INFO, logger="hfstack"):
        counting._measure_peak_flops.__wrapped__("cpu", torch.float32, threads=2)
    assert "% of 2 threads to this measurement: the peak may be higher" in caplog.text


def test_the_cpu_is_measured_once_and_quickly(caplog: pytest.LogCaptureFixture) -> None:
    counting._measure_peak_flops.cache_clear()
    begin = time.process_time()
    with caplog.at_level(logging.INFO, logger="hfstack"):
        first = peak_flops_per_s("cpu", torch.float32)
    # the margin is for a loaded machine
    assert time.process_time() - begin < 0.3 * torch.get_num_threads() + 0.5
    assert 1e8 < first < 1e15
    assert peak_flops_per_s(torch.device("cpu"), torch.float32) == first
    assert caplog.text.count("peak of cpu in torch.float32 measured") == 1
