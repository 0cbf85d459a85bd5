"""A conversation becomes rows that sft, reward and dpo read."""

from pathlib import Path
from typing import Any

import pytest

from hfstack.data.sources import Source, iterate_rows
from hfstack.errors import DataError
from hfstack.tasks.causal_lm.conversation import Conversation, append_rows, preference_row
from hfstack.tasks.preferences.rows import PreferenceArgs, kind_of, normal, pair_texts


def test_turns_stand_behind_the_system_turn_and_can_be_undone() -> None:
    talk = Conversation(system="be kind")
    talk.keep("a", "b")
    talk.keep("c", "d")
    assert [turn["content"] for turn in talk.turns_with("e")] == ["be kind", *"abcde"]
    assert [turn["role"] for turn in talk.turns_with("e")][:3] == ["system", "user", "assistant"]
    assert talk.undo() == "c" and talk.undo() == "a" and talk.undo() is None
    assert talk.turns_with("e") == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "e"},
    ]


def test_a_text_that_goes_on_stays_one_text() -> None:
    talk = Conversation()
    with pytest.raises(DataError, match="no text yet to continue"):
        talk.last_text()
    talk.keep("Once", " upon")
    talk.keep(talk.last_text(), " a time", goes_on=True)
    assert talk.exchanges == [("Once upon", " a time")]
    assert talk.rows(chat=False) == [{"text": "Once upon a time"}]


def test_rows_of_sft() -> None:
    talk = Conversation()
    assert talk.rows(chat=True) == [] == talk.rows(chat=False)
    talk.keep("a", "b")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert talk.rows(chat=True) == [{"messages": turns}]


@pytest.mark.parametrize("chat", [True, False])
def test_a_preference_is_read_by_the_recipes(tmp_path: Path, chat: bool) -> None:
    turns: list[dict[str, Any]] = [{"role": "user", "content": "Hello\u2028there"}]
    row = preference_row(turns, ("good", "runs/a"), ("bad", "runs/b"), chat=chat)
    file = tmp_path / "new" / "pairs.jsonl"
    append_rows(file, [row])
    append_rows(file, [row | {"chosen_model": "runs/c"}])

    args = PreferenceArgs()
    kind, rows = kind_of(iterate_rows([Source(str(file))]), args)
    read = list(rows)
    assert kind == "pairs" and len(read) == 2
    assert [one["chosen_model"] for one in read] == ["runs/a", "runs/c"]
    pair = normal(*pair_texts(read[0], args), args)
    if chat:
        assert pair["prompt"] == turns
        assert pair["chosen"] == [{"role": "assistant", "content": "good"}]
    else:
        assert pair == {"prompt": "Hello\u2028there", "chosen": "good", "rejected": "bad"}


def test_rows_are_appended_to_whole_lines_of_json_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"give a name that ends in \.jsonl"):
        append_rows(tmp_path / "x.txt", [{}])
    torn = tmp_path / "x.jsonl"
    torn.write_text('{"a": 1}\n{"a"')
    with pytest.raises(DataError, match="does not end with a whole line"):
        append_rows(torn, [{"a": 2}])
    assert torn.read_text() == '{"a": 1}\n{"a"'
    with pytest.raises(DataError, match="cannot be written"):
        append_rows(torn / "below.jsonl", [{"a": 2}])
