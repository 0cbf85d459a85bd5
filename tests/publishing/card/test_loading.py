"""The code of a card: it samples what it says, and asks a model as it was trained."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hfstack.publishing.card.author import AuthorFacts
from hfstack.publishing.card.render import render_card, render_loading
from hfstack.publishing.files import detect_kind
from hfstack.publishing.lineage import follow_chain, rendering_of
from hfstack.runs.run import Run


def test_the_code_of_a_card_samples_what_it_says(tmp_path: Path, tiny_tokenizer):
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        eos_token_id=None,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data.zero_()  # every token is as likely
    model.generation_config.update(
        do_sample=True,
        top_k=3,
        min_p=0.5,
        repetition_penalty=4.0,
        num_beams=2,
        no_repeat_ngram_size=1,
        suppress_tokens=list(range(280)),
        min_new_tokens=90,
    )
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)

    kind = detect_kind(tmp_path, {})
    code = render_loading(kind, str(tmp_path), chat=False).split("```python\n")[1].split("```")[0]
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    exec(code, found)  # noqa: S102
    tokens = found["outputs"][0].tolist()[-100:]
    assert sum(token < 280 for token in tokens) > 80 and len(set(tokens)) < 100


@pytest.mark.parametrize(
    ("recipes", "form", "asked"),
    [
        (["pretrain_clm"], "", False),
        (["pretrain_clm", "sft"], "chat", True),
        (["pretrain_clm", "sft"], "plain", False),
        (["sft", "merge_checkpoint"], "chat", True),
        (["dpo"], "", True),
    ],
)
def test_a_card_asks_as_the_model_was_trained(
    tmp_path: Path, tiny_llama: Path, recipes: list[str], form: str, asked: bool
):
    folder = tmp_path / "parent"
    for number, recipe in enumerate(recipes):
        folder = tmp_path / f"{number}-{recipe}"
        with Run.start(f"{recipe}.py", folder) as run:
            if number:
                run.record_inputs(tmp_path / f"{number - 1}-{recipes[number - 1]}")
            if recipe == "sft":
                run.record.rendering = {"form": form, "tokenizer": "a", "template": "b"}
            run.finish({})
    shutil.copytree(tiny_llama, folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text("{{ messages }}")

    chain = follow_chain(folder)
    card = render_card(
        chain,
        detect_kind(folder, {}),
        AuthorFacts(),
        repo="a/b",
        made=datetime(2026, 1, 2, tzinfo=UTC),
    )
    assert ("apply_chat_template" in card) is asked
    assert rendering_of(chain).get("form", "") == ("text" if recipes == ["pretrain_clm"] else form)
