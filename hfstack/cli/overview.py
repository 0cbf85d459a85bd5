"""Show the recipes by job, and of a recipe's options the ten that matter.

Standard library only.
"""

import ast
import re
from pathlib import Path

_JOBS = {
    "Make data ready": ("clean", "demo_corpus", "tokenizer"),
    "Pretrain": ("pretrain_clm", "pretrain_mlm", "scaling_ladder", "scaling_fit"),
    "Teach a language model to answer": ("sft", "distill", "dpo", "orpo", "kto"),
    "Train against rewards": (
        *("preferences", "annotate", "feedback"),
        *("reward", "ppo", "rloo", "grpo"),
    ),
    "Classify, tag, answer, translate": (
        *("classify", "tag", "answer", "seq2seq"),
        *("predict", "explain"),
    ),
    "Search and compare texts": ("embed", "search"),
    "Try and measure": (
        *("generate", "evaluate_lm", "score", "win_rate"),
        *("bias", "safety", "diagnose", "report"),
    ),
    "Plan and publish": ("plan", "publish", "verify", "merge_checkpoint"),
}
_OTHERS = "Others"

# What people set first, in the order in which it is shown; a recipe's own options follow.
_FIRST = (
    *("model_name_or_path", "run", "runs", "tokenizer_name_or_path", "reward_model"),
    *("reference_model", "datasets", "eval_datasets", "prompts", "prompts_file", "output_dir"),
    *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("max_length", "block_size", "use_peft", "max_new_tokens", "temperature"),
)
_SHOWN = 10
_ENTRY = re.compile(r"^  --(\w+)")
_JOB_TITLE = re.compile(r"^\S+ \((\S+)\)$")


def list_recipes(folder: Path) -> str:
    """Return the recipes of a folder by job, each with its docstring's first line."""
    summaries = {}
    for path in sorted(folder.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        summaries[path.stem] = docstring.partition("\n")[0]

    grouped = {name for names in _JOBS.values() for name in names}
    others = tuple(name for name in summaries if name not in grouped)
    width = max(map(len, summaries), default=0)
    parts = []
    for job, names in {**_JOBS, _OTHERS: others}.items():
        there = [name for name in names if name in summaries]
        if there:
            start = "" if job == _OTHERS else f" (start here: {there[0]})"
            parts.append(f"{job}{start}")
            parts += [f"  {name:<{width}}  {summaries[name]}" for name in there]

    return "\n".join(parts)


def shorten_reference(text: str, recipe: str) -> str:
    """Return the page of a recipe with the ten options that matter instead of all.

    Args:
        text: of the option reference, as plain text.
        recipe: the recipe's name, whose own class is named after its file.
    """
    head, entries, own = _split_page(text, recipe)
    ranked = [name for name in (*_FIRST, *own) if name in entries]
    shown = list(dict.fromkeys(ranked))[:_SHOWN]
    if len(shown) == len(entries):
        return text

    count = len(entries)
    last = f"All {count} options: hfstack run {recipe} --help all"
    return "\n\n".join([head, *(entries[name] for name in shown), last])


def _split_page(text: str, recipe: str) -> tuple[str, dict[str, str], list[str]]:
    """Return what stands above the options, each option's lines, and the own ones."""
    head: list[str] = []
    entries: dict[str, list[str]] = {}
    own: list[str] = []
    name, is_own = None, False
    for line in text.splitlines():
        if section := _JOB_TITLE.match(line):
            is_own, name = section[1] == f"{recipe}.py", ""
        elif entry := _ENTRY.match(line):
            name = entry[1]
            entries[name] = [line]
            own += [name] if is_own else []
        elif name is None:
            head.append(line)
        elif name and line:
            entries[name].append(line)

    texts = {name: "\n".join(lines) for name, lines in entries.items() if name != "config"}
    return "\n".join(head).rstrip(), texts, own
