"""Push checkpoints to a branch during training, instead of upstream's own push.

    callbacks=[*protect(run, push_checkpoints(training_args))]

Upstream's `--push_to_hub` makes a public repository, puts `training_args.bin` into it (a pickle
with every setting, the token among them when it was given), changes main while the model is
unfinished, and gives up at the first 503.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants
from transformers import TrainingArguments

from hfstack.errors import ConfigError
from hfstack.logs import get_logger
from hfstack.publishing.files import detect_kind, make_item, published_files
from hfstack.publishing.hub import (
    HubRepo,
    check_pushed,
    find_token,
    head_commit,
    owner_of,
    prepare_repo,
    push,
)
from hfstack.publishing.merging import in_shards, merge_shards
from hfstack.publishing.secret_scan import known_secrets, refuse_secrets

logger = get_logger(__name__)

BRANCH = "checkpoints"
_TRAINER_STATE = "trainer_state.json"


def push_checkpoints(training_args: TrainingArguments) -> list[Callable[[Path], None]]:
    """Return what pushes each checkpoint if `--push_to_hub` asks for that.

    Upstream's own push is turned off. Call it before the Trainer is built. The repository is made,
    private unless `--hub_private_repo false`, and the token checked right away, not after hours of
    training. `--hub_model_id` names it, by default after `output_dir`; `--hub_revision` names the
    branch.

    Raises:
        ConfigError: there is no token that may write there, or the branch is main.
        HubError: the Hub cannot be reached.
    """
    if not training_args.push_to_hub:
        return []
    training_args.push_to_hub = False
    branch = training_args.hub_revision or BRANCH
    if branch == "main":
        raise ConfigError(
            "--hub_revision main: checkpoints go to a branch, so that main never holds an "
            "unfinished model; publish the finished run with the publish recipe"
        )

    # the repository
    endpoint, token = constants.ENDPOINT, find_token()
    repo = training_args.hub_model_id or Path(str(training_args.output_dir)).resolve().name
    if "/" not in repo:
        repo = f"{owner_of(endpoint, token)}/{repo}"
    private = training_args.hub_private_repo is not False
    target = HubRepo(repo, endpoint=endpoint, token=token, private=private, branch=branch)

    if int(os.environ.get("RANK", "0")) == 0:
        prepare_repo(target)
        logger.info(
            "checkpoints go to branch %s of %s; main waits for the publish recipe",
            branch,
            target.url,
        )
    return [CheckpointPush(target)]


class CheckpointPush:
    """Push a checkpoint's weights, tokenizer and log to a branch, as one commit.

    The optimizer's state stays here: it is a pickle. Shards of FSDP or DeepSpeed are merged first,
    in the memory of this machine. After a failure the next checkpoint is pushed on top of what is
    there.

    Args:
        target: the repository and the branch, once `prepare_repo` has found them in order.
    """

    def __init__(self, target: HubRepo) -> None:
        self.target = target

    def __call__(self, folder: Path) -> None:
        """Push one checkpoint, and compare what arrived.

        Raises:
            CheckpointError: it has no whole safetensors weights, or shards that cannot be merged.
            ConfigError: a file holds a secret.
            HubError: the Hub refuses or cannot be reached, also after waiting and trying again.
        """
        if not in_shards(folder):
            self._push(folder, folder)
            return
        with tempfile.TemporaryDirectory(prefix=".merged-", dir=folder.parent) as whole:
            merge_shards(folder, Path(whole))
            self._push(folder, Path(whole))

    def _push(self, folder: Path, whole: Path) -> None:
        """Push the model that lies in `whole` as that of a checkpoint."""
        files = published_files(whole, detect_kind(whole, {}), {})
        if (folder / _TRAINER_STATE).is_file():
            files[_TRAINER_STATE] = folder / _TRAINER_STATE
        items = [make_item(name, path) for name, path in files.items()]
        refuse_secrets(items, known_secrets())

        message, parent = f"Checkpoint {folder.name}", head_commit(self.target)
        sha = push(self.target, items, parent=parent, message=message)
        check_pushed(self.target, items, sha)
        branch, url = self.target.branch, self.target.url
        logger.info("%s is on branch %s of %s: %s", folder.name, branch, url, sha[:10])
