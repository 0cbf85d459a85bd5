"""Merge a sharded checkpoint, a part of each process, into a plain model folder.

Two kinds are read: FSDP's (`pytorch_model_fsdp_0/`, as torch.distributed.checkpoint writes it) and
DeepSpeed's (`global_step<n>/`, any ZeRO stage). All weights are in memory at once, and nothing runs
on an accelerator.

Both kinds hold pickles. FSDP's index is read only if it names nothing but the few types of an
index, and torch reads the shards themselves as plain tensors. DeepSpeed's shards are read by
DeepSpeed's own converter, which unpickles them whole: merge only those that you wrote. The script
`zero_to_fp32.py` that it leaves beside them is never run.
"""

import copy
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch.distributed import checkpoint as distributed_checkpoint
from transformers import PreTrainedConfig, PreTrainedModel

from hfstack.errors import CheckpointError, MissingExtraError
from hfstack.models import gru
from hfstack.models.adapters import name_magnitudes
from hfstack.models.saved import compare_with_saved, read_logits

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
_FSDP_FOLDER, _FSDP_PREFIX, _INDEX = "pytorch_model_fsdp_0", "model.", ".metadata"
_DEEPSPEED_MARK = "latest"

# PPO trains policy and critic as one module: the policy is the model, the critic a file beside it.
CRITIC_FILE, _POLICY_PREFIX = "critic.safetensors", "policy."

_METADATA, _FILES = (
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.filesystem",
)
# What a pickled index may name.
_TYPES_OF_AN_INDEX = {
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "BytesStorageMetadata"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    (_FILES, "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
}


# What unpickling raises for a file that is not an index.
_NO_INDEX = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    TypeError,
)


def kind_of_shards(checkpoint: Path) -> str | None:
    """Return `fsdp` or `deepspeed` for a sharded checkpoint, None for another folder."""
    if (checkpoint / _FSDP_FOLDER).is_dir():
        return "fsdp"
    return "deepspeed" if (checkpoint / _DEEPSPEED_MARK).is_file() else None


def describe_model(model: torch.nn.Module, checkpoint: Path) -> None:
    """Save what the Trainer leaves out beside FSDP's shards.

    That is `config.json`, or `adapter_config.json` for an adapter; of a policy with a critic the
    policy's.
    """
    trained: Any = getattr(model, "policy", model)
    if hasattr(trained, "peft_config"):
        trained.peft_config[trained.active_adapter].save_pretrained(str(checkpoint))
    elif isinstance(trained, PreTrainedModel):
        config = copy.deepcopy(trained.config)
        # fully_shard puts FSDP before the name of the class.
        config.architectures = [type(trained).__name__.removeprefix("FSDP")]
        config.save_pretrained(checkpoint)


def read_shards(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return every weight of a sharded checkpoint, whole, by its name in the model.

    Raises:
        CheckpointError: these are no shards, one is missing, or the index is not one.
        MissingExtraError: DeepSpeed wrote it and is not installed.
    """
    kind = kind_of_shards(checkpoint)
    if kind is None:
        if any(checkpoint.glob("*.safetensors")):
            hint = ": its weights are plain safetensors, so use it as it is"
        else:
            hint = "; name a checkpoint-<step>"
        raise CheckpointError(f"{checkpoint} holds no shards of FSDP or DeepSpeed{hint}")
    return _read_fsdp(checkpoint / _FSDP_FOLDER) if kind == "fsdp" else _read_deepspeed(checkpoint)


def merge_checkpoint(
    checkpoint: Path, output: Path, *, described_by: str | Path | None = None
) -> tuple[int, dict[str, Any]]:
    """Save a sharded checkpoint as a plain folder of a model, or of an adapter.

    The critic of PPO goes to critic.safetensors, and does not count.

    Args:
        checkpoint: the `checkpoint-<step>` folder.
        output: an existing folder for the model.
        described_by: a model whose config.json describes the weights, for a checkpoint without one.

    Returns:
        The number of parameters, and how the model compares with the one that was saved, as
        `compare_with_saved` says it.

    Raises:
        CheckpointError: a shard is missing, nothing describes the weights, or they are not those of
            the description, or the model that was saved gives other logits.
        MissingExtraError: DeepSpeed wrote it and is not installed.
    """
    state = read_shards(checkpoint)

    # PPO's policy, and the critic beside it
    if any(name.startswith(_POLICY_PREFIX) for name in state):
        critic = {
            name: weight.contiguous()
            for name, weight in state.items()
            if not name.startswith(_POLICY_PREFIX)
        }
        save_file(critic, output / CRITIC_FILE)
        state = {
            name.removeprefix(_POLICY_PREFIX): weight
            for name, weight in state.items()
            if name.startswith(_POLICY_PREFIX)
        }

    # An adapter's weights need no model to be saved.
    if described_by is None and (checkpoint / ADAPTER_CONFIG).is_file():
        plain = {name: weight.contiguous() for name, weight in state.items()}
        save_file(plain, output / "adapter_model.safetensors", metadata={"format": "pt"})
        (output / ADAPTER_CONFIG).write_bytes((checkpoint / ADAPTER_CONFIG).read_bytes())
        name_magnitudes(output)
        skipped = "an adapter is copied tensor by tensor, and its base is not loaded"
        return sum(weight.numel() for weight in plain.values()), {"skipped": skipped}

    model = _load_described_model(state, described_by or checkpoint)
    model.save_pretrained(output)

    model_class = type(model)
    found = compare_with_saved(
        read_logits(model),
        model,
        output,
        lambda saved: model_class.from_pretrained(
            output, dtype=saved.dtype, use_safetensors=True, trust_remote_code=False
        ),
    )
    return model.num_parameters(), found


def _load_described_model(
    state: dict[str, torch.Tensor], described_by: str | Path
) -> PreTrainedModel:
    """Load weights into a config.json's model, which checks names, shapes and ties."""
    config = _read_described_config(described_by)
    name = config.architectures[0]
    model_class = getattr(transformers, name, None) or getattr(gru, name, None)
    if model_class is None:
        raise CheckpointError(
            f"{described_by}: transformers has no class {name}, which its {CONFIG} names"
        )

    dtype = next(weight.dtype for weight in state.values() if weight.is_floating_point())
    try:
        model, found = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except RuntimeError as error:
        raise CheckpointError(
            f"the shards do not fit {described_by}: {' '.join(str(error).split())[:200]}"
        ) from None

    wrong = [
        f"{kind.split('_')[0]} {key}"
        for kind in ("missing_keys", "unexpected_keys")
        for key in found[kind]
    ]
    if wrong:
        raise CheckpointError(
            f"the shards are not the weights of {name}, which {described_by} describes: "
            f"{', '.join(wrong[:3])}"
        )
    return model


def _read_described_config(described_by: str | Path) -> Any:
    """Return the configuration that names the class of the model."""
    try:
        config = PreTrainedConfig.get_config_dict(described_by)[0]
        config = (
            transformers.AutoConfig.from_pretrained(described_by, trust_remote_code=False)
            if config
            else None
        )
    except (OSError, ValueError):
        config = None
    if config is None or not config.architectures:
        raise CheckpointError(
            f"{described_by} has no {CONFIG} that says which model the weights belong to; "
            "name the model that was trained: --model_name_or_path MODEL"
        )
    return config


def _read_fsdp(folder: Path) -> dict[str, torch.Tensor]:
    """Return the whole weights of FSDP's shards, of which none may be missing."""
    index = _read_index(folder)
    for file in sorted({entry.relative_path for entry in (index.storage_data or {}).values()}):
        if not (folder / file).is_file():
            raise CheckpointError(
                f"{folder / file} is missing: without every process's part there is no model"
            )

    weights = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)  # the shape of the whole weight
        for name, entry in index.state_dict_metadata.items()
        if isinstance(entry, distributed_checkpoint.TensorStorageMetadata)
    }
    reader = distributed_checkpoint.FileSystemReader(folder)
    with warnings.catch_warnings():
        # torch 2.13 warns that one process reads alone, also where no_dist asks for that
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled", category=UserWarning
        )
        distributed_checkpoint.load(weights, storage_reader=reader, no_dist=True)
    return {name.removeprefix(_FSDP_PREFIX): weight for name, weight in weights.items()}


def _read_index(folder: Path) -> distributed_checkpoint.Metadata:
    """Read the pickled index, which torch would unpickle whatever it names."""
    try:
        with (folder / _INDEX).open("rb") as file:
            index = _IndexReader(file).load()
    except OSError as error:
        raise CheckpointError(
            f"{folder / _INDEX}: {error.strerror}; the process that saves it last did not finish"
        ) from None
    except _NO_INDEX as error:
        raise CheckpointError(
            f"{folder / _INDEX} is not the index of a sharded checkpoint: {error}"
        ) from None

    if not isinstance(index, distributed_checkpoint.Metadata):
        raise CheckpointError(f"{folder / _INDEX} is not the index of a sharded checkpoint")
    return index


class _IndexReader(pickle.Unpickler):
    """Unpickle nothing but the types of an index: a checkpoint cannot run code."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        is_dtype = module_name == "torch" and isinstance(
            getattr(torch, global_name, None), torch.dtype
        )
        if is_dtype or (module_name, global_name) in _TYPES_OF_AN_INDEX:
            return super().find_class(module_name, global_name)
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


def _read_deepspeed(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the whole weights of DeepSpeed's shards, by its own converter."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or importing it looks for a GPU's compiler
    try:
        from deepspeed.utils.zero_to_fp32 import (  # type: ignore[import-not-found]
            get_fp32_state_dict_from_zero_checkpoint,
        )
    except ImportError:
        raise MissingExtraError("deepspeed", "deepspeed") from None

    try:
        found = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    except (OSError, ValueError) as error:  # it counts the shards against what each of them says
        raise CheckpointError(f"{checkpoint}: {' '.join(str(error).split())}") from None
    return {name: weight.clone() for name, weight in found.items()}
