"""Count how often the careless one of four annotators is found, on a real model.

    python benchmarks/feedback_careless.py --store runs/rounds/annotate1 --model runs/story/sft

Reads the pairs of a store of the demo's tasks, lets three simulated people who err in a tenth of
their judgements and one who also labels 30 % at random judge all of them, and prints by which
figure of the recipe feedback the careless one is the worst.
"""

import argparse
import functools
import random
from typing import Any

from result_file import markdown_table, save
from trl import ModelConfig

from hfstack.demo.rules import gold_score
from hfstack.feedback.annotators import with_others
from hfstack.feedback.export import JudgedItem, Vote, read_stores
from hfstack.feedback.kinds import Item
from hfstack.feedback.leave_out import labelled_pairs, leave_one_out, pair_features
from hfstack.feedback.simulate import Habits, decide
from hfstack.tasks.preferences.rows import answer_text

NOISE, CARELESS = 0.1, 0.3
PEOPLE = {"ann": Habits(NOISE), "ben": Habits(NOISE), "cid": Habits(NOISE)}
PEOPLE["dan"] = Habits(NOISE, careless=CARELESS)

rate = functools.lru_cache(maxsize=None)(gold_score)


def judge(items: list[Item], seed: int) -> list[JudgedItem]:
    """Return the items as all four judge them."""
    judged = []
    for place, item in enumerate(items):
        one = JudgedItem(item)
        shown = {
            "prompt": [{"text": answer_text(item.prompt)}],
            "answers": [[{"text": answer_text(answer)}] for answer in item.answers],
        }
        for name, habits in PEOPLE.items():
            chance = random.Random(f"{seed}/{name}/{place}")
            verdict = decide({"kind": "pairs"}, shown, rate, habits, chance)
            one.votes.append(Vote(name, "turn", verdict, {}, number=place))
        judged.append(one)
    return judged


def main() -> None:
    """Read the command line, and count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--projects", type=int, default=20)
    args = parser.parse_args()

    kind, kept = read_stores([args.store])
    items = [one.item for one in kept if one.item.gold is None][: args.pairs]
    assert kind == "pairs", kind
    features = list(pair_features(ModelConfig(model_name_or_path=args.model), judge(items, 0)))

    found = dict.fromkeys(("majority of the others", "own labels agree", "loss of own labels"), 0)
    for seed in range(args.projects):
        judged = judge(items, seed)
        left = leave_one_out(labelled_pairs(judged, features), seed=seed)
        shares = {name: with_others(kind, judged, name) for name in PEOPLE}
        worst = (
            min(PEOPLE, key=lambda name: sum(shares[name]) / len(shares[name])),
            min(left, key=lambda one: one.label_agreement[0]).annotator,
            max(left, key=lambda one: one.label_loss[0]).annotator,
        )
        for figure, name in zip(found, worst, strict=True):
            found[figure] += name == "dan"
    figures = {"pairs": len(items), "projects": args.projects, "found": found}
    print(write_table(figures))
    save("feedback_careless", vars(args), figures)


def write_table(figures: dict[str, Any]) -> str:
    """Return in how many projects each figure finds the careless person."""
    projects = figures["projects"]
    rows = [[name, f"{count} of {projects}"] for name, count in figures["found"].items()]
    return markdown_table(["figure", "found in"], rows)


if __name__ == "__main__":
    main()
