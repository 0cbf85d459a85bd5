"""Find the peak memory of a training step without allocating it.

The step runs on tensors that have shapes but no data. The model, its loss, the backward pass and
the optimizer are the real ones; under `FakeTensorMode` they allocate nothing, and a ledger adds up
every tensor that is allocated and released. So the answer holds for any architecture, attention,
adapter or precision, knows what autograd keeps and when it releases it, and takes seconds for a
model that would not fit.

What it cannot see: scratch space inside a kernel, what an allocator keeps beside its tensors, and
the libraries themselves. `docs/recipes/plan.md` has the measured differences.
"""

import contextlib
import copy
import typing
import warnings
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from hfstack.models.counting import flops_per_token
from hfstack.models.fused_loss import use_fused_loss
from hfstack.models.output_head import OutputHead
from hfstack.models.sequence_head import register_classifier
from hfstack.planning.by_layers import SHALLOW, Phase, find_layers, keep_first_layers, scale

StepTask = Literal[
    "causal_lm",
    "masked_lm",
    "sequence_classification",
    "token_classification",
    "question_answering",
    "seq2seq",
]
_CLASSES: dict[str, Any] = {
    "causal_lm": AutoModelForCausalLM,
    "masked_lm": AutoModelForMaskedLM,
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
    "seq2seq": AutoModelForSeq2SeqLM,
}


@dataclass(frozen=True)
class TrainingStep:
    """What decides the memory of one optimizer step of one process."""

    batch_size: int
    """Rows of a micro-batch."""
    sequence_length: int
    """Tokens of a row."""
    task: StepTask = "causal_lm"
    bf16: bool = False
    """Compute under bf16 autocast; weights keep the type that they are loaded in."""
    weight_dtype: torch.dtype = torch.float32
    activation_checkpointing: bool = False
    accumulation: int = 1
    """Micro-batches for each optimizer step: with more than one, gradients are there during the
    forward pass."""
    fused_loss: bool = False
    """The loss of `hfstack.models.fused_loss`, which keeps no logits."""
    lora_rank: int = 0
    """0 trains every weight."""
    lora_targets: str | tuple[str, ...] = "all-linear"
    """Layers with an adapter, as peft takes them."""
    trains: bool = True
    """Off: a forward pass alone, as of a reference or reward model."""


@dataclass(frozen=True)
class PeakMemory:
    """Bytes that are held at the moment when a step holds most."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """All the rest: what autograd keeps, temporary tensors, the batch."""
    rounding: int = 0
    """Beside them, what torch's allocator on a GPU adds to each block; no part of `total`."""

    @property
    def total(self) -> int:
        """Return the bytes of all tensors."""
        return self.weights + self.gradients + self.optimizer + self.activations


def build_step_model(config: PreTrainedConfig, step: TrainingStep) -> PreTrainedModel:
    """Build the model with random weights, as the recipes would train it.

    It is made on whatever device and in whatever mode is active.
    """
    config = copy.deepcopy(config)  # from_config writes the attention and dtype into it
    if step.task == "question_answering":
        config.num_labels = 2  # the span's start and end
    if step.task == "seq2seq":
        # Labels are shifted by these, which a shipped config has from the tokenizer only.
        config.pad_token_id = config.decoder_start_token_id = 0

    if step.task == "sequence_classification":
        register_classifier(config)
    model: Any = _CLASSES[step.task].from_config(config, dtype=step.weight_dtype)
    if step.fused_loss and step.task == "causal_lm":
        use_fused_loss(model, head=_plain_head(model))
    if step.activation_checkpointing and step.trains:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if step.lora_rank:
        model = _add_adapter(model, step)
    return typing.cast(PreTrainedModel, model.train(step.trains))


def _plain_head(model: Any) -> OutputHead:
    """Return the head of a model without data, on which no probe can look for it."""
    names = {module: name for name, module in model.named_modules()}
    projected = ("head_projection",) if "head_projection" in names.values() else ()
    return OutputHead((*projected, names[model.get_output_embeddings()]))


def _add_adapter(model: Any, step: TrainingStep) -> Any:
    """Attach a LoRA adapter to all linear layers, as the recipes do."""
    kind = {"causal_lm": TaskType.CAUSAL_LM, "seq2seq": TaskType.SEQ_2_SEQ_LM}.get(step.task)

    # As upstream does: checkpointing needs an input that has a gradient.
    model.enable_input_require_grads()

    # GPT-2 stores its weights transposed.
    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    targets = step.lora_targets
    adapter = LoraConfig(
        r=step.lora_rank,
        task_type=kind,
        target_modules=targets if isinstance(targets, str) else list(targets),
        fan_in_fan_out=transposed,
    )
    with warnings.catch_warnings():
        # peft 0.21 reads the old name of activation checkpointing from a model
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        return get_peft_model(model, adapter)


def can_checkpoint(config: PreTrainedConfig, step: TrainingStep) -> bool:
    """Return whether the architecture can recompute activations in the backward pass."""
    with torch.device("meta"):
        plain = build_step_model(config, replace(step, activation_checkpointing=False, lora_rank=0))
    return bool(plain.supports_gradient_checkpointing)


def make_batch(step: TrainingStep, device: torch.device) -> dict[str, Tensor]:
    """Return a batch of the step's shape, all zeros."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.long, device=device)

    rows, length = step.batch_size, step.sequence_length
    batch = {"input_ids": zeros(rows, length)}  # (B, T)
    match step.task:
        case "sequence_classification":
            return batch | {"labels": zeros(rows)}
        case "question_answering":
            return batch | {"start_positions": zeros(rows), "end_positions": zeros(rows)}
    return batch | {"labels": zeros(rows, length)}


def run_steps(
    model: PreTrainedModel, step: TrainingStep, *, steps: int
) -> Iterator[torch.optim.Optimizer]:
    """Take optimizer steps, yielding the optimizer after each.

    The same code counts and measures.
    """
    device = model.device
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, fused=True)
    batch = make_batch(step, device)
    precision = (
        torch.autocast(device.type, torch.bfloat16) if step.bf16 else contextlib.nullcontext()
    )

    for _ in range(steps):
        for _ in range(step.accumulation if step.trains else 1):
            with precision, torch.set_grad_enabled(step.trains):
                loss = model(**batch).loss
            if step.trains:
                loss.backward()
            del loss

        if step.trains:
            optimizer.step()
            optimizer.zero_grad()
        yield optimizer


def trained_parameters(config: PreTrainedConfig, step: TrainingStep) -> tuple[int, int]:
    """Return the parameters of the model, and how many of them are trained.

    Those of an adapter are included, and shared ones count once.
    """
    with torch.device("meta"):
        weights = list(build_step_model(config, step).parameters())
    return sum(w.numel() for w in weights), sum(w.numel() for w in weights if w.requires_grad)


def forward_flops(config: PreTrainedConfig, step: TrainingStep) -> float:
    """Return the FLOPs of one forward pass of a micro-batch.

    They are counted as `hfstack.models.counting` does. Tasks other than language modelling have no
    formula: torch's counter runs the model without data. A seq2seq model reads and generates
    `sequence_length` tokens.
    """
    if step.task == "causal_lm":
        per_token = flops_per_token(config, step.sequence_length).forward
        return per_token * step.batch_size * step.sequence_length

    stock = replace(step, batch_size=1, lora_rank=0, activation_checkpointing=False)
    config = copy.deepcopy(config)
    # The fused kinds of attention look into the mask, which has no values here.
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = build_step_model(config, stock).eval()

    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        _materialize(model, "cpu")
        batch = make_batch(stock, torch.device("cpu"))
        with counter:
            model(**batch)
    return float(counter.get_total_flops()) * step.batch_size


def peak_memory(config: PreTrainedConfig, step: TrainingStep) -> PeakMemory:
    """Return what the tensors of one process hold at the peak of a training step.

    The optimizer has its state by then.

    Args:
        config: any config that upstream has a model for, with the tokenizer's `vocab_size`.
        step: the shape of the step. More than two accumulated micro-batches hold no more than two.

    Raises:
        ValueError: the architecture has no model for the task (from upstream).
    """
    step = replace(step, accumulation=min(step.accumulation, 2))
    phases = _scaled_phases(config, step) or trace_phases(config, step)
    roundings = [phase.pop(_ROUNDING, 0) for phase in phases]
    held, rounding, at_peak = max(
        ((sum(phase.values()), more, phase) for phase, more in zip(phases, roundings, strict=True)),
        key=lambda found: found[0],
    )

    labelled = {kind: at_peak.get(kind, 0) for kind in ("weights", "gradients", "optimizer")}
    rest = held - sum(labelled.values())
    return PeakMemory(**labelled, activations=rest, rounding=rounding)


def _scaled_phases(config: PreTrainedConfig, step: TrainingStep) -> list[Phase] | None:
    """Return the phases of a deep model of equal layers, or None for any other."""
    shallow = [
        short for layers in SHALLOW if (short := keep_first_layers(config, layers)) is not None
    ]
    if len(shallow) < len(SHALLOW):
        return None
    # A number in a config may make single layers differ, which the deep model alone shows.
    with torch.device("meta"):
        if find_layers(build_step_model(config, step)) is None:
            return None

    fewer, more = (trace_phases(config, step) for config in shallow)
    return scale(fewer, more, config.num_hidden_layers) if len(fewer) == len(more) else None


def trace_phases(config: PreTrainedConfig, step: TrainingStep) -> list[Phase]:
    """Return what a step holds at the peak of each of its phases.

    Phases are the forward pass, the backward pass of the last layer, of those between and of the
    first one, and the update; without equal layers, the backward pass is one.
    """
    with torch.device("meta"):
        model = build_step_model(config, step)

    ledger = _Ledger()
    layers = find_layers(model)
    with FakeTensorMode(allow_non_fake_inputs=True), ledger:
        _materialize(model, "cpu")
        for count, optimizer in enumerate(run_steps(model, step, steps=2)):
            if count == 0:
                # The first step has no optimizer state yet; the second is like all that follow.
                _label_tensors(ledger, model, optimizer)
                _mark_phases(ledger, model, optimizer, layers)
                ledger.forget_peak()
                ledger.phases.clear()

    return [*ledger.phases, ledger.at_peak]


def _label_tensors(
    ledger: "_Ledger", model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> None:
    """Enter what weights, optimizer state and, as they come, gradients are for."""
    ledger.label("weights", [*model.parameters(), *model.buffers()])
    states = [tensor for state in optimizer.state.values() for tensor in tree_leaves(state)]
    ledger.label("optimizer", states)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda updated: ledger.label("gradients", [updated.grad])
            )


def _mark_phases(
    ledger: "_Ledger",
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    layers: torch.nn.ModuleList | None,
) -> None:
    """Begin a phase of the ledger where the slope of memory over layers may change."""
    model.register_forward_pre_hook(lambda *_: ledger.begin_phase("forward"))
    model.register_forward_hook(lambda *_: ledger.begin_phase("last layer"))
    optimizer.register_step_pre_hook(lambda *_: ledger.begin_phase("update"))

    # Gradients come from the last layer to the first; what comes after the first belongs to it.
    for number, layer in enumerate([] if layers is None else list(layers)[:-1]):
        name = "layers between" if number else "first layer"
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(
                    lambda _, name=name: ledger.begin_phase(name)
                )


def _materialize(model: PreTrainedModel, device: str) -> None:
    """Give every weight of a model on the meta device a tensor of the active mode.

    Shared weights stay shared.
    """
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty_like(tensor, device=device)
                    is_weight = isinstance(tensor, torch.nn.Parameter)
                    made[id(tensor)] = (
                        torch.nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
                    )
                tensors[name] = made[id(tensor)]  # pyright: ignore[reportArgumentType]


# The CPU's LSTM kernel reserves a workspace for each layer, of which the one without data knows
# nothing. These are the pages of it that torch 2.13 touches, read from /proc/self/pagemap: four
# gates and a cell for each output in the forward pass, and 16 to 17 bytes more for each while the
# layer's backward pass runs, in fp32 and bf16.
_LSTM_KEPT = 5
_LSTM_SCRATCH = 16.5


# kept beside the kinds of a phase, and scaled over layers with them
_ROUNDING = "rounding"


def cuda_rounding(size: int) -> int:
    """Return the bytes that torch's allocator on a GPU adds to a block of this size.

    Blocks are multiples of 512 bytes; what is larger than 10 MiB comes in multiples of 2 MiB
    (torch, c10/cuda/CUDACachingAllocator.h).
    """
    multiple = 512 if size < 10 * 2**20 else 2 * 2**20
    return -size % multiple


class _Ledger(TorchDispatchMode):
    """Records which storages are alive, how large they are, and what they are for."""

    def __init__(self) -> None:
        super().__init__()
        self.at_peak: Phase = {}
        self.phases: list[Phase] = []
        self._phase = ""
        self._sizes: dict[int, int] = {}  # storage -> bytes
        self._kinds: dict[int, str] = {}
        self._held: dict[str, int] = {"other": 0, _ROUNDING: 0}  # kind -> bytes
        self._total = self._peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        scratch = None
        if func is torch.ops.aten.mkldnn_rnn_layer_backward.default:
            outputs = args[7]
            size = int(_LSTM_SCRATCH * outputs.numel())
            scratch = args[0].new_empty(size, dtype=torch.uint8)
            self._add(scratch.untyped_storage())

        out = func(*args, **(kwargs or {}))
        del scratch

        if func is torch.ops.aten.mkldnn_rnn_layer.default and args[-1] and not out[3].numel():
            out = (*out[:3], out[3].new_empty(_LSTM_KEPT * out[0].nbytes))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def label(self, kind: str, tensors: Iterable[Any]) -> None:
        """Enter what these tensors are for; anything that is not a tensor is passed over."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata if isinstance(tensor, Tensor) else None
            if key is not None and key in self._sizes:
                self._held[self._kinds[key]] -= self._sizes[key]
                self._held[kind] = self._held.get(kind, 0) + self._sizes[key]
                self._kinds[key] = kind

    def begin_phase(self, name: str) -> None:
        """Keep the peak of the phase before, unless this one goes on."""
        if name != self._phase:
            self.phases.append(self.at_peak)
            self._phase = name
            self.forget_peak()

    def forget_peak(self) -> None:
        """Start the peak from what is held now."""
        self._peak, self.at_peak = self._total, dict(self._held)

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return

        self._sizes[key], self._kinds[key] = storage.nbytes(), "other"
        self._held["other"] += storage.nbytes()
        self._held[_ROUNDING] += cuda_rounding(storage.nbytes())
        self._total += storage.nbytes()
        weakref.finalize(storage, self._remove, key)
        if self._total > self._peak:
            self._peak, self.at_peak = self._total, dict(self._held)

    def _remove(self, key: int) -> None:
        size = self._sizes.pop(key)
        self._held[self._kinds.pop(key)] -= size
        self._held[_ROUNDING] -= cuda_rounding(size)
        self._total -= size
