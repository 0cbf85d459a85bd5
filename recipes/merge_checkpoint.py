"""Merge a checkpoint in shards, or an adapter, into one plain safetensors model.

    python recipes/merge_checkpoint.py --config recipes/merge_checkpoint.yaml
    hfstack run merge_checkpoint --checkpoint runs/clm  # the same, shorter: its newest checkpoint

reads   a checkpoint-<step> folder to which every process wrote its part; or the folder of an
        adapter, whose base has to be there
writes  the model (or adapter), its tokenizer and run.json in --output_dir
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from hfstack.config import command_line
from hfstack.errors import CheckpointError, ConfigError
from hfstack.models.contents import ADAPTER_FILE, identify_model
from hfstack.models.shards import merge_checkpoint
from hfstack.publishing.files import detect_kind, refuse_outside
from hfstack.publishing.merging import in_shards, write_merged
from hfstack.runs.checkpoint_files import find_damage, newest_checkpoint, size_bytes
from hfstack.runs.run import Run, RunArgs
from hfstack.training.saving import record_check

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.*",
    "merges.txt",
    "chat_template.jinja",
)


@dataclass
class MergeArgs:
    """What is merged."""

    checkpoint: str = ""
    """A checkpoint-<step> folder, or a run's directory for its newest whole one; or the folder of
    an adapter, to be merged into its base.
    """
    model_name_or_path: str | None = None
    """The model that was trained, for a checkpoint without a config.json and a tokenizer of
    its own."""


def main(args: MergeArgs, run_args: RunArgs) -> dict[str, float]:
    """Check the checkpoint, merge it and return the number of parameters."""
    if not args.checkpoint:
        raise ConfigError("--checkpoint is required, such as --checkpoint runs/clm/checkpoint-500")
    checkpoint = Path(args.checkpoint)
    adapter = (checkpoint / ADAPTER_FILE).is_file() and not in_shards(checkpoint)
    if not adapter and not checkpoint.name.startswith("checkpoint-"):
        newest = newest_checkpoint(checkpoint)
        if newest is None:
            raise CheckpointError(
                f"{checkpoint} holds no complete checkpoint-<step>; name one with --checkpoint"
            )
        checkpoint = newest

    with Run.start(__file__, run_args.output_dir, args, run_args) as run:
        # adapter
        if adapter:
            contents = identify_model(str(checkpoint))
            run.record_inputs(checkpoint, contents.base)
            kind = detect_kind(checkpoint, {}, rewards=contents.kind == "reward model")
            parameters, found = write_merged(checkpoint, kind, run.output_dir)
            record_check(run, found)
            print(f"{checkpoint}: {parameters:,} parameters are in {run.output_dir}")
            return run.finish({"parameters": parameters})

        # run
        if (damage := find_damage(checkpoint)) is not None:
            raise CheckpointError(f"{checkpoint} is no complete checkpoint: {damage}; name another")
        run.record_inputs(checkpoint.parent)
        beside = [path for pattern in TOKENIZER_FILES for path in checkpoint.glob(pattern)]
        for path in beside:
            refuse_outside(path, checkpoint)

        # model
        parameters, found = merge_checkpoint(
            checkpoint, run.output_dir, described_by=args.model_name_or_path
        )
        record_check(run, found)

        # tokenizer: the named model's, replaced by what is beside the shards
        if args.model_name_or_path is not None:
            AutoTokenizer.from_pretrained(
                args.model_name_or_path, trust_remote_code=False
            ).save_pretrained(run.output_dir)
        for path in beside:
            shutil.copyfile(path, run.output_dir / path.name)

        # finish
        print(f"{checkpoint}: {parameters:,} parameters are in {run.output_dir}")
        return run.finish({"parameters": parameters, "checkpoint_bytes": size_bytes(checkpoint)})


if __name__ == "__main__":
    command_line(main)
