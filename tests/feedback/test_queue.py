"""Who judges what: overlap, never twice to one person, checks and repeats mixed in, resumes."""

from collections import Counter

from hfstack.feedback.kinds import Item, blind_order
from hfstack.feedback.queue import HOLD_S, Queue, QueueSettings
from hfstack.feedback.store import Judgement, Step


def items(count: int, gold: int = 0) -> list[Item]:
    plain = [Item(f"p{number}", ["a", "b"]) for number in range(count)]
    return plain + [Item(f"g{number}", ["a", "b"], gold={"choice": 0}) for number in range(gold)]


def settings(overlap: int = 1, gold: float = 0.0, repeats: float = 0.0) -> QueueSettings:
    return QueueSettings(overlap=overlap, gold_share=gold, repeat_share=repeats, seed=0)


def take(queue: Queue, name: str, now: float = 0.0) -> Step | None:
    step = queue.next_step(name, now)
    if step is not None and step.number == len(queue.steps[name]):
        queue.add_step(step)
    return step


def judge(queue: Queue, step: Step, action: str = "judge") -> Judgement:
    made = Judgement(f"{step}{action}", step.annotator, step.number, action, {})
    queue.add_judgement(made)
    return made


def judge_everything(queue: Queue, names: list[str]) -> list[Step]:
    taken = []
    while len(names := [name for name in names if queue.next_step(name, 0.0)]):
        for name in names:
            if step := take(queue, name):
                judge(queue, step)
                taken.append(step)
    return taken


def test_each_item_is_judged_by_as_many_people_as_asked_and_by_none_twice() -> None:
    queue = Queue(items(20), settings(overlap=2))
    taken = judge_everything(queue, ["ann", "ben", "cid"])
    assert Counter(step.item for step in taken) == dict.fromkeys(range(20), 2)
    assert len({(step.annotator, step.item) for step in taken}) == 40
    assert queue.progress == (40, 40) and queue.is_finished(["ann", "ben", "cid"], 0.0)


def test_checks_and_repeats_come_at_their_rates_and_once_each() -> None:
    queue = Queue(items(400, gold=60), settings(gold=0.1, repeats=0.05))
    taken = judge_everything(queue, ["ann"])
    roles = Counter(step.role for step in taken)
    assert roles["turn"] == 400
    # a tenth of some 470 steps, and a twentieth; the limits are three standard deviations
    assert 28 <= roles["gold"] <= 67 and 9 <= roles["repeat"] <= 38
    assert all(step.item >= 400 for step in taken if step.role == "gold")
    for role in ("gold", "repeat"):
        shown = [step.item for step in taken if step.role == role]
        assert len(shown) == len(set(shown))


def test_what_is_shown_and_not_judged_is_shown_again_and_held() -> None:
    queue = Queue(items(1), settings())
    first = take(queue, "ann")
    assert first is not None and take(queue, "ann") == first, "a reload shows the same"
    assert take(queue, "ben", HOLD_S - 1) is None
    late = take(queue, "ben", HOLD_S + 1)
    assert late is not None and late.item == first.item, "who leaves does not keep it for ever"


def test_a_skip_asks_somebody_else_and_an_undo_opens_the_step() -> None:
    queue = Queue(items(1), settings())
    first = take(queue, "ann")
    assert first is not None
    judge(queue, first, "skip")
    assert take(queue, "ann") is None and queue.progress == (0, 1)
    second = take(queue, "ben")
    assert second is not None and second.item == first.item
    judge(queue, second)
    assert queue.progress == (1, 1)
    judge(queue, second, "undo")
    assert queue.progress == (0, 1) and take(queue, "ben") == second


def test_the_most_urgent_comes_first() -> None:
    made = [Item("a", ["x", "y"]), Item("b", ["x", "y"], priority=0.9), Item("c", ["x", "y"])]
    queue = Queue(made, settings())
    assert [step.item for step in judge_everything(queue, ["ann"])] == [1, 0, 2]


def test_a_queue_made_again_from_the_store_goes_on_as_before() -> None:
    queue = Queue(items(30, gold=5), settings(overlap=2, gold=0.2, repeats=0.2))
    steps, judgements = [], []
    for _ in range(12):
        for name in ("ann", "ben"):
            step = take(queue, name)
            assert step is not None
            steps.append(step)
            judgements.append(judge(queue, step))
    again = Queue(items(30, gold=5), settings(overlap=2, gold=0.2, repeats=0.2))
    again.restore(steps, judgements)
    assert again.progress == queue.progress
    for name in ("ann", "ben"):
        assert again.next_step(name, 9.0) == queue.next_step(name, 9.0)


def test_the_order_of_sides_is_fixed_for_a_person_and_an_item_and_fair_over_them() -> None:
    assert blind_order(0, 7, "ann", answers=2) == blind_order(0, 7, "ann", answers=2)
    first = sum(
        blind_order(0, item, name, answers=2)[0] == 0
        for item in range(200)
        for name in ("ann", "ben")
    )
    assert 160 <= first <= 240, "four standard deviations around a fair coin"


def test_who_comes_back_after_a_hold_adds_nothing_to_the_progress() -> None:
    queue = Queue(items(2), settings())
    first = take(queue, "ann")
    second = take(queue, "ben", HOLD_S + 1)
    assert first is not None and second is not None and first.item == second.item
    judge(queue, second)
    judge(queue, first)
    assert queue.progress == (1, 2), "the other item is judged by nobody"
    judge(queue, first, "undo")
    assert queue.progress == (1, 2)


def test_a_clock_that_is_set_back_holds_nothing_for_ever() -> None:
    queue = Queue(items(1), settings())
    assert take(queue, "ann", 1e9) is not None
    assert take(queue, "ben", 1e9 - 1) is None
    assert take(queue, "ben", 5.0) is not None
