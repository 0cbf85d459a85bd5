"""Let people judge answers in a browser: which is better, and how much.

    accelerate launch recipes/annotate.py --config recipes/annotate.yaml --datasets pairs.jsonl
    hfstack run annotate --datasets pairs.jsonl --annotators ann ben --overlap 2     # the same

reads   answers from files, or one or two models that answer the prompts of files or of the demo
writes  feedback.sqlite (every judgement, for the recipe feedback) and run.json in --output_dir
"""

import webbrowser
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import DataArgs, Source, describe_sources, iterate_rows
from hfstack.demo.instructions import instruction
from hfstack.demo.rules import gold_score, require_demo_prompts
from hfstack.errors import ConfigError, DataError
from hfstack.feedback.access import LEAD, token_of
from hfstack.feedback.desk import Desk
from hfstack.feedback.items import (
    Answered,
    ItemCounts,
    ProjectArgs,
    choose_random,
    describe_project,
    items_of,
    must_make_items,
    read_answered,
    read_gold,
)
from hfstack.feedback.kinds import Item
from hfstack.feedback.sampling import (
    AnswerArgs,
    answer_prompts,
    choose_uncertain,
    load_scorers,
)
from hfstack.feedback.server import bind, serving, wait_for_people
from hfstack.feedback.simulate import SimulationArgs, simulate_people
from hfstack.feedback.store import claimed_store
from hfstack.runs.run import Run, RunArgs
from hfstack.tasks.preferences.data import follow_model
from hfstack.tasks.preferences.rows import PreferenceArgs, answer_text, prompt_of

# What simulated annotators go by: a function (prompt, answer) -> number in [0, 1].
RULE = gold_score
# What the items come from: a store that was made with others is another project's.
MADE_BY = ("answers_per_prompt", "max_new_tokens", "temperature", "top_p", "top_k", "min_p")
MADE_BY += ("select", "reward_models", "max_items", "pairs_per_prompt", "demo_prompts")


@dataclass
class AnnotateArgs(ProjectArgs, AnswerArgs, SimulationArgs):
    """What is judged, by whom, and where the page is served."""

    host: str = "127.0.0.1"
    """Address to serve on; anything but this machine's own loopback can be read by others."""
    port: int = 8765
    """Port to serve on; 0 for any free one."""
    store: str | None = None
    """File of the judgements; feedback.sqlite in --output_dir by default."""
    open_page: bool = False
    """Open the first annotator's page in this machine's browser."""
    demo_prompts: int = 40
    """Prompts of the demo corpus to answer, when a model but no --datasets are named."""

    def __post_init__(self) -> None:
        ProjectArgs.__post_init__(self)
        AnswerArgs.__post_init__(self)
        if self.select == "uncertain" and self.kind != "pairs":
            raise ConfigError(f"--select uncertain chooses pairs, and --kind is {self.kind}")


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    preference_args: PreferenceArgs,
    args: AnnotateArgs,
    run_args: RunArgs,
) -> dict[str, float]:
    """Serve the page until all is judged, and return what was counted."""
    if not model_args.model_name_or_path and not data_args.datasets:
        raise ConfigError("nothing to judge: name --datasets with answers, or a model that answers")
    settings = (model_args, data_args, preference_args, args, run_args)
    sock = bind(args.host, args.port)
    with (
        sock,
        Run.start(__file__, run_args.output_dir, *settings) as run,
        claimed_store(Path(args.store or run.output_dir / "feedback.sqlite")) as store,
    ):
        # data: made once, and then read from the store
        how = follow_model(preference_args, model_args)
        names = (model_args.model_name_or_path, args.other_model)
        made_of = {"models": names, "datasets": [one.path for one in data_args.datasets]}
        made_of |= {name: getattr(args, name) for name in MADE_BY}
        project = describe_project(args, made_of, seed=run_args.seed)

        counts, read = ItemCounts(), {}
        if must_make_items(store, project):
            rows = list(iterate_rows(data_args.datasets, max_rows=data_args.max_rows, log=read))
            rows = rows or [instruction(run_args.seed, i) for i in range(args.demo_prompts)]
            counts.rows = len(rows)
            answered = answer_rows(model_args, rows, how, args)
            items = make_items(answered, args, counts, seed=run_args.seed)
            gold = iterate_rows([Source(args.gold)]) if args.gold else []
            made = items + read_gold(args.kind, gold, how)
            store.create(project | {"counts": asdict(counts)}, made)
        asked = describe_sources(data_args.datasets, read)
        run.record_inputs(*names, *args.reward_models, items=asked)
        run.add_artifact("feedback", store.path)

        # people
        desk = Desk(store)
        address = sock.getsockname()[:2]
        tokens = {name: token_of(desk.project["key"], name) for name in desk.annotators}
        with serving(desk, sock):
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            place = f"http://{host}:{address[1]}"
            for name, token in tokens.items():
                print(f"{name}: {place}/#{token}", flush=True)
            print(f"lead: {place}/lead#{token_of(desk.project['key'], LEAD)}", flush=True)

            if args.simulate:
                require_demo_prompts([answer_text(item.prompt) for item in desk.items])
                simulate_people(address, tokens, RULE, args, seed=run_args.seed)
            else:
                if args.open_page:
                    webbrowser.open(f"{place}/#{tokens[desk.annotators[0]]}")
                wait_for_people(desk)

        # finish; a run that goes on has counted nothing itself
        judged, wanted = desk.queue.progress
        counts = desk.project["counts"]
        return run.finish({"judgements": judged, "judgements_wanted": wanted} | counts)


def answer_rows(
    model_args: ModelConfig, rows: list[Any], how: PreferenceArgs, args: AnnotateArgs
) -> list[Answered]:
    """Return the answers to judge: those in the rows, or those of the models."""
    if not model_args.model_name_or_path:
        return read_answered(rows, how)
    prompts = list(dict.fromkeys(prompt_of(row, how) for row in rows))
    return answer_prompts(model_args, prompts, args, chat=bool(how.conversational))


def make_items(
    answered: list[Answered],
    args: AnnotateArgs,
    counts: ItemCounts,
    *,
    seed: int,
) -> list[Item]:
    """Return the items that people see, chosen as asked."""
    found = items_of(args.kind, answered, counts, seed=seed)
    per_prompt = args.pairs_per_prompt if args.kind == "pairs" else len(found)
    if args.select == "uncertain":
        scorers = load_scorers(args.reward_models)
        items = choose_uncertain(found, scorers, per_prompt=per_prompt, most=args.max_items)
    else:
        items = choose_random(found, per_prompt=per_prompt, most=args.max_items, seed=seed)

    counts.items = len(items)
    if not items:
        raise DataError(f"no items to judge are left: {asdict(counts)}; give more, or other, rows")
    return items


if __name__ == "__main__":
    command_line(main)
