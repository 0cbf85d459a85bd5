"""Every upstream symbol, field and hook that hfstack relies on.

An upgrade breaks here, by name. What the source names (imports, `module.attribute` chains,
training_args fields, overridden methods) is found in it; what it assumes is listed below.
"""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [*sorted((ROOT / "hfstack").rglob("*.py")), *sorted((ROOT / "recipes").glob("*.py"))]
# Upstream classes that ours derive from, and the methods and properties of theirs that ours
# replace. A method that is gone upstream would never be called; one that is new upstream may be
# replaced by accident. Both fail below.
HOOKS = {
    "transformers.TrainerCallback": (
        "on_train_begin on_epoch_begin on_step_begin on_step_end on_log on_evaluate on_train_end "
        "on_pre_optimizer_step on_epoch_end on_save on_prediction_step on_predict"
    ),
    "transformers.trainer_callback.ExportableState": "state",
    "transformers.HfArgumentParser": "error",
    "yaml.SafeLoader": "compose_node compose_mapping_node",
    "transformers.generation.streamers.BaseStreamer": "put end",
    "transformers.PreTrainedModel": "_init_weights",
    "transformers.Trainer": (
        "_get_eval_sampler get_train_dataloader training_step compute_loss create_optimizer "
        "get_eval_dataloader get_test_dataloader prediction_step evaluation_loop get_batch_samples "
        "create_scheduler _clip_grad_norm "
        "evaluate log save_model _save _load_from_checkpoint _load_best_model"
    ),
    "transformers.generation.GenerationMixin": "_supports_default_dynamic_cache",
    "transformers.cache_utils.Cache": (
        "get_seq_length get_max_length get_mask_sizes reset reorder_cache crop "
        "batch_select_indices batch_repeat_interleave batch_size is_initialized is_croppable "
        "is_compileable"
    ),
    "transformers.cache_utils.DynamicLayer": "update get_seq_length",
    "trl.generation.vllm_generation.VLLMGeneration": "_iter_named_params",
    "trl.DPOTrainer": "_prepare_dataset",
    "trl.KTOTrainer": "_prepare_dataset",
    "trl.experimental.orpo.ORPOTrainer": (
        "tokenize_row get_batch_loss_metrics store_metrics concatenated_forward odds_ratio_loss"
    ),
    "evaluate.Metric": "_info _compute",
    "torch.nn.Module": "forward",
    "torch.autograd.Function": "forward backward",
}
# Private names of others that the source reads or sets, and who has them. A name in single quotes
# stands in the source of the owner: it is made there on instances.
PRIVATE = {
    "argparse._ActionsContainer": "'_actions'",
    "torch.nn.Module": "'_parameters' '_buffers'",
    "torch.UntypedStorage": "_cdata",
    "torch.ops.mkldnn": "_is_mkldnn_bf16_supported",
    "torch.distributed.distributed_c10d": "_get_default_store _set_pg_timeout",
    "transformers.PreTrainedConfig": "_attn_implementation",
    "transformers.PreTrainedModel": "_keys_to_ignore_on_save '_is_hf_initialized'",
    "transformers.Trainer": "_get_num_items_in_batch _prepare_inputs '_loss_shifts_labels'",
    "trl.SFTTrainer": "'_metrics'",
    "trl.DPOTrainer": "'_metrics'",
    "trl.KTOTrainer": "'_metrics'",
    "trl.RewardTrainer": "'_metrics'",
    "trl.experimental.orpo.ORPOTrainer": "'_stored_metrics'",
    "trl.generation.vllm_generation.VLLMGeneration": "'_dist' _fix_param_name_to_vllm",
    "peft.tuners.tuners_utils.BaseTunerLayer": "_active_adapter _disable_adapters",
    "peft.utils.other.AuxiliaryTrainingWrapper": "'_active_adapter' '_disable_adapters'",
    "tiktoken.Encoding": "'_core_bpe'",
    "datatrove.executor.base.PipelineExecutor": "_run_for_rank",
}
PUBLIC = {"_asdict", "_replace", "_exit"}  # of namedtuple and os, by the standard library's docs


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_upstream(module: str) -> bool:
    # the child of a sandbox imports hfstack/sandbox/calls.py from its own folder
    return module.split(".")[0] not in sys.stdlib_module_names | {"hfstack", "calls"}


def imported_names() -> list[tuple[str, str]]:
    found = set()
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and node.module and is_upstream(node.module):
                found |= {(node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {(alias.name, "") for alias in node.names if is_upstream(alias.name)}
    return sorted(found)


def attribute_chains() -> list[str]:
    """Return each `torch.cuda.is_available` in the source, by its full name.

    Only those whose root is an upstream import.
    """
    found = set()
    for path in SOURCES:
        roots = {}
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                plain = {alias.name.split(".")[0] for alias in node.names if not alias.asname}
                roots |= {name: name for name in plain}
                roots |= {alias.asname: alias.name for alias in node.names if alias.asname}
            elif isinstance(node, ast.ImportFrom) and node.module:
                roots |= {
                    alias.asname or alias.name: f"{node.module}.{alias.name}"
                    for alias in node.names
                }

        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Attribute):
                continue
            chain = ast.unparse(node)
            root, _, rest = chain.partition(".")
            is_plain = chain.replace(".", "").isidentifier()
            if is_plain and root in roots and is_upstream(roots[root]):
                found.add(f"{roots[root]}.{rest}")

    return sorted(found)


def resolve(name: str) -> object:
    """Return the object of a dotted name.

    A field without a default counts as an attribute of its class.
    """
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue

        for part in parts[length:]:
            if not hasattr(found, part) and part in getattr(found, "__annotations__", {}):
                return found
            found = getattr(found, part)
            if not isinstance(found, ModuleType | type):
                return found  # attributes of values and functions are checked where they are used
        return found

    raise ModuleNotFoundError(name)


# imported where it is used, and the extra that installs it
OPTIONAL = {
    "deepspeed": "deepspeed",
    "fastapi": "feedback",
    "uvicorn": "feedback",
    "datatrove": "cluster",
    "vllm": "vllm",
}


def skip_without(module: str) -> None:
    package = module.partition(".")[0]
    if package in OPTIONAL and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'hfstack[{OPTIONAL[package]}]'")


@pytest.mark.parametrize(("module", "name"), imported_names(), ids=lambda value: value or "module")
def test_imports(module: str, name: str):
    skip_without(module)
    loaded = importlib.import_module(module)
    assert not name or hasattr(loaded, name) or importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize("name", attribute_chains())
def test_attributes(name: str):
    assert resolve(name) is not None


def test_training_arguments_fields():
    import trl
    from transformers import Seq2SeqTrainingArguments, TrainingArguments

    from hfstack.tasks.rl.ppo.config import PPOConfig

    used = {
        node.attr
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
        and re.search(r"\b_?training_args$", ast.unparse(node.value))
    }
    assert {
        "output_dir",
        "resume_from_checkpoint",
        "full_determinism",
        "world_size",
        "device",
    } <= used

    trl_settings = (
        trl.SFTConfig,
        trl.RewardConfig,
        trl.DPOConfig,
        trl.KTOConfig,
    )
    settings = (TrainingArguments, Seq2SeqTrainingArguments, PPOConfig, *trl_settings)
    assert [name for name in sorted(used) if not any(hasattr(one, name) for one in settings)] == []

    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert {"bf16", "fp16", "use_cpu", "ddp_backend", "hub_token", "seed"} <= fields


def our_classes() -> Iterator[type]:
    for path in SOURCES:
        if any(isinstance(node, ast.ClassDef) for node in tree(path).body):
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            yield from (
                cls
                for cls in vars(module).values()
                if isinstance(cls, type) and cls.__module__ == module.__name__
            )


def test_hooks_exist_upstream():
    for name, hooks in HOOKS.items():
        for hook in hooks.split():
            assert hasattr(resolve(name), hook), f"{name} has no {hook} any more"


def test_hooks_are_all_listed():
    """Those of classes that are only combined with one of upstream, too."""
    known = {resolve(name): set(hooks.split()) for name, hooks in HOOKS.items()}
    for cls in our_classes():
        upstream = [base for base in cls.__mro__ if is_upstream(base.__module__)]
        listed = set().union(*(hooks for base, hooks in known.items() if base in cls.__mro__))
        parts = [part for part in cls.__mro__ if part not in upstream and part is not object]
        for part, (name, value) in ((one, item) for one in parts for item in vars(one).items()):
            if isinstance(value, FunctionType) and value.__module__ != part.__module__:
                continue  # added by upstream, as the checks of a configuration are
            kinds = FunctionType | property | classmethod | staticmethod
            replaces = [base for base in upstream if name in vars(base)]
            if replaces and not name.startswith("__") and isinstance(value, kinds):
                assert name in listed, (
                    f"{part.__name__}.{name} replaces {replaces[0].__qualname__}.{name}: list it "
                    "in HOOKS"
                )


def private_names() -> tuple[set[str], set[str]]:
    """Return the private attributes that the source makes, and those that it uses."""
    made, used = set[str](), set[str]()
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                made.add(node.name)
            elif isinstance(node, ast.alias):
                made |= {*node.name.split("."), node.asname or ""}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                made.add(node.id)
            elif isinstance(node, ast.Attribute):
                of_its_own = ast.unparse(node.value) in ("self", "cls")
                (made if of_its_own and isinstance(node.ctx, ast.Store) else used).add(node.attr)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
                used |= {part.value for part in node.args[1:2] if isinstance(part, ast.Constant)}

    used = {name for name in used if name.startswith("_") and not name.startswith("__")}
    return made, used


def test_private_names_are_all_listed():
    made, used = private_names()
    listed = {name.strip("'") for names in PRIVATE.values() for name in names.split()}
    hooks = {hook for names in HOOKS.values() for hook in names.split()}
    assert sorted(used - made - listed - hooks - PUBLIC) == [], "of whom are they? see PRIVATE"
    assert sorted(listed - used) == [], "no longer used"


@pytest.mark.parametrize("owner", PRIVATE)
def test_private_names_exist_upstream(owner: str):
    skip_without(owner)
    found = resolve(owner)
    for name in PRIVATE[owner].split():
        if name.startswith("'"):
            source = "".join(
                inspect.getsource(base)
                for base in getattr(found, "__mro__", [found])
                if is_upstream(base.__module__) or base.__module__ == "argparse"
            )
            assert re.search(rf"\b{name.strip(chr(39))}\b", source), (
                f"{owner} has no {name} any more"
            )
        else:
            assert hasattr(found, name), f"{owner} has no {name} any more"


def test_the_trainer_counts_and_evaluates_as_the_averages_need():
    from accelerate.data_loader import DataLoaderShard
    from accelerate.state import GradientState
    from transformers import Trainer
    from trl.experimental.orpo import ORPOTrainer

    # token_average.py builds the loader of one process's rows by itself
    loader = DataLoaderShard(
        [10, 11, 12, 13],
        device=None,
        batch_sampler=[[0, 2], [3]],
        collate_fn=list,
        num_workers=0,
        pin_memory=False,
        persistent_workers=False,
        prefetch_factor=None,
    )
    assert list(loader) == [[10, 12], [13]]
    for name in ("end_of_dataloader", "remainder"):
        assert isinstance(getattr(GradientState, name), property)

    parameters = {
        "get_batch_samples": ["epoch_iterator", "num_batches", "device"],
        "_get_num_items_in_batch": ["batch_samples", "device"],
        "_prepare_inputs": ["inputs"],
        "prediction_step": ["model", "inputs", "prediction_loss_only", "ignore_keys"],
    }
    for name, expected in parameters.items():
        assert list(inspect.signature(getattr(Trainer, name)).parameters)[1:] == expected, name
    assert "metric_key_prefix" in inspect.signature(Trainer.evaluation_loop).parameters

    # step_means.py weighs the fifth of what ORPO's forward pass returns
    assert "chosen_logits, rejected_logits, chosen_nll_loss)" in inspect.getsource(
        ORPOTrainer.concatenated_forward
    )


def test_the_argument_parser_behaves_as_config_needs():
    from transformers import HfArgumentParser, TrainingArguments

    parser = HfArgumentParser([TrainingArguments], allow_abbrev=False)
    actions = {
        action.dest: action
        for action in parser._actions
        if action.option_strings[0] == f"--{action.dest}"
    }
    assert actions["learning_rate"].option_strings == ["--learning_rate", "--learning-rate"]
    assert actions["use_cpu"].nargs == "?", "a bool is a flag or takes true|false"
    assert "--no_dataloader_pin_memory" in parser.format_help()


def test_the_trainer_behaves_as_run_needs():
    from transformers import Trainer

    assert {"resume_from_checkpoint"} <= set(inspect.signature(Trainer.train).parameters)
    assert {"output_dir"} <= set(inspect.signature(Trainer.save_model).parameters)
    for name in ("save_state", "evaluate", "is_world_process_zero"):
        assert callable(getattr(Trainer, name))


def test_the_trainer_counts_labels_as_the_preflight_sets():
    from transformers import Trainer
    from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

    # hfstack/training/next_token.py sets the first and answers the second
    assert "_loss_shifts_labels" in inspect.getsource(Trainer._get_num_items_in_batch)
    assert "self.compute_loss_func is not None" in inspect.getsource(Trainer.training_step)
    assert "fused_lm_head=False" in inspect.getsource(add_fused_lm_head)
    assert {field.name for field in dataclasses.fields(FusedCausalLMOutput)} == {
        *("loss", "log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"),
        *("label_mask", "aux_loss"),
    }


def test_accelerate_starts_one_cpu_process_and_leaves_only_master_addr(
    monkeypatch: pytest.MonkeyPatch,
):
    """What environment.refuse_wrong_world_size detects; when this changes, the check can go."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    parsed = launch_command_parser().parse_args(
        ["--cpu", "--num_processes", "2", "--num_machines", "1", "recipe.py"]
    )
    arguments, _, _ = _validate_launch_command(parsed)
    command, environment = prepare_simple_launcher_cmd_env(arguments)
    assert command == [sys.executable, "recipe.py"]
    assert environment["ACCELERATE_USE_CPU"].lower() == "true"
    assert "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment


def test_launcher_options():
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    accelerate = vars(launch_command_parser().parse_args(["recipe.py"]))
    for name in (
        "num_processes",
        "num_machines",
        "machine_rank",
        "main_process_ip",
        "main_process_port",
    ):
        assert name in accelerate
    assert {"tee", "log_dir", "quiet", "config_file"} <= accelerate.keys()

    torchrun = vars(get_args_parser().parse_args(["recipe.py"]))
    assert {
        "nproc_per_node",
        "nnodes",
        "node_rank",
        "master_addr",
        "master_port",
        "standalone",
    } <= torchrun.keys()
    assert {"tee", "log_dir"} <= torchrun.keys()


def test_torchrun_waits_as_long_as_the_environment_says(monkeypatch: pytest.MonkeyPatch):
    from torch.distributed.launcher.api import LaunchConfig

    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2).shutdown_timeout == 600


def test_the_report_of_torchrun_names_the_first_failure():
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    from hfstack.cli.supervise import _root_cause

    failures = {
        rank: ProcessFailure(local_rank=rank - 4, pid=10 + rank, exitcode=code, error_file="none")
        for rank, code in ((5, -9), (4, -15))
    }
    failures[5].timestamp, failures[4].timestamp = 1, 2
    assert _root_cause(str(ChildFailedError("recipe.py", failures))) == (5, -9, "1")


def test_nothing_of_ours_needs_the_hub_to_import():
    program = "import hfstack.runs.run, hfstack.config; from trl import ModelConfig"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr


def test_the_hub_client_behaves_as_publishing_needs(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import CommitOperationAdd, HfApi, constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils._runtime import is_xet_available

    assert {"parent_commit", "revision", "repo_type"} <= set(
        inspect.signature(HfApi.create_commit).parameters
    )
    assert list(inspect.signature(CommitOperationAdd).parameters)[:2] == [
        "path_in_repo",
        "path_or_fileobj",
    ]
    assert issubclass(HfHubHTTPError, HTTPError) and issubclass(
        RepositoryNotFoundError, HfHubHTTPError
    )
    assert issubclass(RevisionNotFoundError, HfHubHTTPError)
    assert constants.HUGGINGFACE_HEADER_X_XET_ENDPOINT == "X-Xet-Cas-Url"
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    assert not is_xet_available(), "the setting is read at each upload, not once at import"


def test_trackers_read_the_environment_that_tracking_sets():
    from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

    assert "TENSORBOARD_LOGGING_DIR" in inspect.getsource(TensorBoardCallback.__init__)
    for callback in (TrackioCallback, WandbCallback):
        assert "args.run_name" in inspect.getsource(callback.setup)
    assert 'resume="allow"' in inspect.getsource(TrackioCallback.setup)


def test_trackers_are_built_from_the_table_that_tracking_changes():
    from transformers.integrations import TrackioCallback, WandbCallback, integration_utils

    table = integration_utils.INTEGRATION_TO_CALLBACK
    assert table["wandb"] is WandbCallback and table["trackio"] is TrackioCallback
    assert "INTEGRATION_TO_CALLBACK[integration]" in inspect.getsource(
        integration_utils.get_reporting_integration_callbacks
    )
    for callback in (TrackioCallback, WandbCallback):
        names = list(inspect.signature(callback.on_log).parameters)
        assert names == ["self", "args", "state", "control", "model", "logs", "kwargs"]
        assert '"train/global_step": state.global_step' in inspect.getsource(callback.on_log)
    assert "self._trackio.finish()" in inspect.getsource(TrackioCallback.on_train_end), (
        "before the last evaluation"
    )


def test_the_trainer_runs_its_epochs_as_ppo_needs():
    """One rollout is one epoch.

    Its index comes first, then the random state, then the loader is iterated.
    """
    from transformers import Trainer

    source = inspect.getsource(Trainer._run_epoch)
    loads, sets, iterates = (
        source.index(text)
        for text in ("_load_rng_state", "set_epoch(epoch)", "epoch_iterator = iter(")
    )
    assert loads < sets < iterates
    assert "should_epoch_stop" in source and Trainer.loss_is_scaled_for_ga is None
    assert list(inspect.signature(Trainer._save).parameters) == ["self", "output_dir", "state_dict"]
    assert list(inspect.signature(Trainer._load_from_checkpoint).parameters)[1:] == [
        "resume_from_checkpoint",
        "model",
    ]
    assert 'optimizer_kwargs.pop("params")' in inspect.getsource(Trainer.create_optimizer)
    assert 'grad_acc_kwargs["num_steps"] = 1' in inspect.getsource(
        Trainer.create_accelerator_and_postprocess
    )


def test_adapters_switch_as_the_actor_critic_needs():
    """actor_critic.py sets `_active_adapter` and `_disable_adapters`.

    PEFT's own methods change requires_grad.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for kind in (BaseTunerLayer, AuxiliaryTrainingWrapper):
        for name in ("active_adapter", "disable_adapters"):
            assert f"return self._{name}" in inspect.getsource(
                inspect.getattr_static(kind, name).fget
            )
    assert "_set_layer_requires_grad" in inspect.getsource(BaseTunerLayer.enable_adapters)


def test_models_and_caches_behave_as_the_sampler_needs():
    from transformers import DynamicCache, PreTrainedModel
    from trl.models.utils import prepare_fsdp

    assert {"config"} <= set(inspect.signature(DynamicCache.__init__).parameters)
    assert callable(DynamicCache.batch_select_indices)
    names = list(inspect.signature(PreTrainedModel.activation_checkpointing_enable).parameters)[1:]
    assert names == ["activation_checkpointing_kwargs", "every_n_layers", "offload"]
    assert list(inspect.signature(prepare_fsdp).parameters) == ["model", "accelerator"]


def test_torch_processes_meet_and_wait_as_runs_expect() -> None:
    """`hfstack.runs.processes` and `hfstack.cli.loopback` rest on these."""
    from torch.distributed import TCPStore, distributed_c10d
    from torch.distributed.elastic.rendezvous import (
        c10d_rendezvous_backend,
        dynamic_rendezvous,
        static_tcp_rendezvous,
    )

    assert "timeout" in inspect.signature(distributed_c10d._set_pg_timeout).parameters
    assert callable(distributed_c10d._get_default_store)
    assert "master_listen_fd" in str(TCPStore.__init__.__doc__)
    # replaced by name, in the modules that make one
    assert c10d_rendezvous_backend.TCPStore is static_tcp_rendezvous.TCPStore is TCPStore
    assert "dist.TCPStore(" in inspect.getsource(dynamic_rendezvous)
