"""Rows are shown as they are trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hfstack.errors import ExamplesShown
from hfstack.runs.record import read_run
from hfstack.training.examples import describe_rows
from tests.tiny_tokenizers import llama2


def describe(batch: dict[str, Any], tokenizer: Any, names: Any = None) -> list[str]:
    [text] = describe_rows([{"input_ids": []}], lambda rows: batch, tokenizer, names)
    return text.split("\n")


@pytest.fixture
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llama)


def ids_of(tokenizer: Any, text: str) -> torch.Tensor:
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


def test_the_trained_part_of_a_text_is_marked_and_padding_left_out(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, "The owl was kind")
    labels = ids.clone()
    labels[0, :2] = -100
    pad = torch.zeros_like(ids[:, :2])
    batch = {
        "input_ids": torch.cat([ids, pad], 1),
        "labels": torch.cat([labels, pad - 100], 1),
        "attention_mask": torch.cat([torch.ones_like(ids), pad], 1),
    }
    lines = describe(batch, tokenizer)
    count = ids.shape[1]
    assert lines[0] == f"{count} tokens, {count - 2} trained"
    read, trained = (json.loads(line[11:]) for line in lines[1:])
    assert lines[1].startswith("  read ") and lines[2].startswith("  trained ")
    assert read == tokenizer.decode(ids[0, :2]) and read + trained == "The owl was kind"


def test_a_blank_at_the_seam_is_kept() -> None:
    tokenizer = llama2(dummy_prefix=True)
    ids = ids_of(tokenizer, "a little girl")
    mask = torch.zeros_like(ids)
    mask[0, -1] = 1
    lines = describe({"input_ids": ids, "completion_mask": mask}, tokenizer)
    texts = [json.loads(line[11:]) for line in lines[1:]]
    assert "".join(texts) == "a little girl"


def test_labels_that_are_no_text_are_named(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, "The owl")
    tags = torch.full_like(ids, -100)
    tags[0, 1] = 2
    lines = describe({"input_ids": ids, "labels": tags}, tokenizer, {0: "O", 1: "B-A", 2: "B-B"})
    assert lines[-1] == f"  labels   {tokenizer.decode(ids[0, 1:2]).strip()} -> B-B"

    classes = {"input_ids": ids, "labels": torch.tensor([1])}
    assert describe(classes, tokenizer, {0: "bad", 1: "good"})[-1] == "  label    good"

    target = ids_of(tokenizer, "The fox ran on and on")
    lines = describe({"input_ids": ids, "labels": target}, tokenizer)
    assert lines[-1] == '  trained  "The fox ran on and on"'

    # as long as the source by chance
    target = {"input_ids": ids, "labels": ids.flip(1), "decoder_input_ids": ids}
    assert describe(target, tokenizer)[0] == f"{ids.shape[1]} tokens"

    places = torch.tensor([1])
    answer = {"input_ids": ids, "start_positions": places, "end_positions": places}
    assert (
        describe(answer, tokenizer)[-1] == f"  answer   {json.dumps(tokenizer.decode(ids[0, 1:2]))}"
    )

    several = {"input_ids": ids, "labels": torch.tensor([[1.0, 0.0]])}
    assert describe(several, tokenizer)[-1] == "  label    [1.0, 0.0]"


def test_a_prompt_is_shown_as_it_is(tokenizer: Any) -> None:
    rows = [{"prompt": "狐狸\n"}]
    [text] = describe_rows(rows, list, tokenizer)
    assert text == 'a prompt\n  asked    "狐狸\\n"'


def test_both_sides_of_a_pair_are_shown(tokenizer: Any) -> None:
    batch = {}
    for side, text in {"chosen": "The owl was kind", "rejected": "The owl ran"}.items():
        ids = ids_of(tokenizer, text)
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < 2, -100)
        mask = torch.ones_like(ids)
        batch |= {f"{side}_input_ids": ids, f"{side}_labels": labels}
        batch[f"{side}_attention_mask"] = mask
    text = "\n".join(describe(batch, tokenizer))
    assert text.count(" trained\n") == 2 and "kind" in text and "ran" in text


def test_pairs_whose_order_or_nearness_is_trained_are_shown(tokenizer: Any) -> None:
    sides = {side: ids_of(tokenizer, side)[0].tolist() for side in ("chosen", "rejected")}
    row = {f"{side}_ids": ids for side, ids in sides.items()}
    [text] = describe_rows([row], list, tokenizer)
    counts = [len(ids) for ids in sides.values()]
    assert text.startswith(f"a pair of {counts[0]} and {counts[1]} tokens: the order is trained\n")
    assert text.splitlines()[1:] == ['  chosen   "chosen"', '  rejected "rejected"']

    row = {"query": "Where?", "passage": "In the den.", "score": 0.5}
    [text] = describe_rows([row], list, tokenizer)
    assert text.splitlines()[1:] == [
        '  query    "Where?"',
        '  passage  "In the den."',
        "  score    0.5",
    ]


def test_show_prints_rows_and_leaves_nothing(run_recipe, tiny_llama: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "out"
    data.write_text(
        "".join(json.dumps({"text": f"The owl {i} was kind."}) + "\n" for i in range(9))
    )
    call = [
        *("pretrain_clm", "--model_name_or_path", tiny_llama, "--datasets", data),
        *("--eval_fraction", 0, "--block_size", 16, "--max_steps", 1, "--use_cpu", "true"),
        *("--report_to", "none", "--save_strategy", "no", "--output_dir", out, "--bf16", "false"),
    ]
    with pytest.raises(ExamplesShown) as shown:
        run_recipe(*call, "--show", 2)
    printed = str(shown.value)
    counted = "train: 9 rows read, 9 used\ncolumns used: text; not used: none\n\n"
    assert printed.startswith(f"{counted}row 1, 16 tokens, 16 trained\n  trained")
    assert "row 2, " in printed
    assert not out.exists()

    run_recipe(*call)
    assert (read_run(out).example or "").startswith("16 tokens, 16 trained\n")
    with pytest.raises(ExamplesShown):
        run_recipe(*call, "--max_steps", 2, "--show", 1, "--allow_changed", "max_steps")
    assert read_run(out).status == "finished"


def test_showing_a_row_leaves_the_random_numbers_of_training_alone(tokenizer: Any) -> None:
    def masked(rows: Any) -> dict[str, Any]:
        torch.rand(3)
        return {"input_ids": ids_of(tokenizer, "The owl")}

    before = torch.get_rng_state()
    assert next(describe_rows([{}], masked, tokenizer)).endswith('"The owl"')
    assert torch.equal(torch.get_rng_state(), before)
