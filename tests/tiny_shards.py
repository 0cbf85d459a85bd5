"""A checkpoint in shards, as the Trainer leaves it under FSDP, made by one process."""

import json
from pathlib import Path

from torch.distributed import checkpoint as distributed_checkpoint
from transformers import AutoTokenizer, LlamaForCausalLM

from hfstack.models.shards import describe_model
from hfstack.runs.manifest import STATE

SHARD = "pytorch_model_fsdp_0/__0_1.distcp"


def write_shards(folder: Path, llama: Path) -> LlamaForCausalLM:
    """Write two shards of a model, its config and its tokenizer into a new folder; return the
    model.
    """
    model = LlamaForCausalLM.from_pretrained(llama)
    writer = distributed_checkpoint.FileSystemWriter(
        folder / "pytorch_model_fsdp_0", thread_count=2
    )
    distributed_checkpoint.save({"model": model.state_dict()}, storage_writer=writer, no_dist=True)
    describe_model(model, folder)
    AutoTokenizer.from_pretrained(llama).save_pretrained(folder)
    (folder / STATE).write_text(json.dumps({"global_step": 6, "log_history": []}))
    assert (folder / SHARD).is_file()
    return model
