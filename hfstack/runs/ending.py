"""Say at the end of a run what came out, where its page is, and what to do next."""

import shlex

from hfstack.drawing.measures import describe_measure, most_telling
from hfstack.runs.record import RunRecord

_SHOWN_RESULTS = 3
_CHAT = "hfstack chat {run}"
_NEXT = {
    "demo_corpus": "hfstack run clean --datasets {run}/raw.jsonl",
    "clean": "hfstack run tokenizer --datasets {run}/train.jsonl",
    "tokenizer": "hfstack run pretrain_clm --tokenizer_name_or_path {run}",
    "pretrain_clm": "hfstack run generate --model_name_or_path {run}",
    "pretrain_mlm": "hfstack run classify --model_name_or_path {run}",
    "scaling_ladder": "hfstack run scaling_fit --runs {run}",
    **dict.fromkeys(("sft", "distill", "dpo", "orpo", "kto", "ppo", "rloo", "grpo"), _CHAT),
    "embed": "hfstack run search --model_name_or_path {run} --datasets YOUR_FILE",
    "preferences": "hfstack run reward --datasets {run}/train.jsonl",
    "reward": "hfstack run ppo --reward_model {run}",
    "publish": "hfstack run verify --repo {repo}",
    **dict.fromkeys(
        ("classify", "tag", "answer", "seq2seq"),
        "hfstack run predict --model_name_or_path {run} --datasets YOUR_FILE",
    ),
}

# Their output is the page, or says nothing that a page would show.
_WITHOUT_PAGE = frozenset({"report", "publish", "verify", "predict", "search"})
# They print what they found themselves, or have it on their page.
_SAYS_RESULTS = frozenset({"predict", "verify", "search", "explain"})


def describe_ending(record: RunRecord) -> list[str]:
    """Return a line each for the results, the page, and the next command."""
    run = shlex.quote(record.output_dir)
    names = most_telling(record.metrics, record.recipe)[:_SHOWN_RESULTS]
    if record.recipe in _SAYS_RESULTS:
        names = []
    results = [describe_measure(name, record.metrics, record.recipe) for name in names]

    # A recipe that makes a page of its own lists it; of others the report is one.
    own = [path for path in record.artifacts.values() if path.endswith(".html")]
    page = f"{record.output_dir}/{own[0]}" if own else f"hfstack run report --runs {run}"

    lines = [f"results: {', '.join(results)}"] if results else []
    lines += [f"page: {page}"] if own or record.recipe not in _WITHOUT_PAGE else []
    if follows := _next_command(record):
        lines.append(f"next: {follows}")
    return lines


def _next_command(record: RunRecord) -> str:
    """Return the command that usually comes next, "" where there is none."""
    values = {name: value for part in record.settings.values() for name, value in part.items()}
    repo = str(values.get("repo") or "")
    # What was only looked at, or has no name yet, is not there to be verified.
    if record.recipe == "publish" and (values.get("dry_run") or not repo):
        return ""
    template = _NEXT.get(record.recipe, "")
    return template.format(run=shlex.quote(record.output_dir), repo=shlex.quote(repo))
