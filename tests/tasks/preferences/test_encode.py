"""dpo, kto and orpo train the tokens that sft and reward read, whatever a tokenizer adds."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from hfstack.runs.record import read_run
from hfstack.tasks.preferences.alignment import count_truncated
from hfstack.tasks.preferences.encode import encode_answer
from tests.one_training_step import OLD_CHECKPOINTING, ONE_STEP
from tests.tiny_tokenizers import byte_bpe

pytestmark = OLD_CHECKPOINTING
# the end of a turn is another token than the eos, as in ChatML on a base model's tokenizer
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ROW = {"prompt": "Where is the fox?", "chosen": " In its den.", "rejected": " I am an owl."}


def tokenizer_that_adds(start_and_end: str) -> PreTrainedTokenizerBase:
    tokenizer = byte_bpe(trim_offsets=False)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<|end|>"]})
    if start_and_end:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=start_and_end, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def turns(row: dict[str, str]) -> dict[str, Any]:
    return {
        name: [{"role": "user" if name == "prompt" else "assistant", "content": text.strip()}]
        for name, text in row.items()
    }


@pytest.mark.parametrize("recipe", ["dpo", "kto", "orpo"])
@pytest.mark.parametrize(("adds", "chat"), [("$A", True), ("<s> $A </s>", False), ("$A", False)])
def test_one_text_is_the_same_tokens_in_every_recipe(
    run_recipe: Any, tmp_path: Path, caplog: Any, recipe: str, adds: str, chat: bool
) -> None:
    tokenizer = tokenizer_that_adds(adds)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **size, **ids)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")

    row = turns(ROW) if chat else ROW
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps(row) + "\n")
    settings = {
        **ONE_STEP,
        "model_name_or_path": tmp_path / "model",
        "datasets": data,
        "output_dir": tmp_path / "out",
        "eval_fraction": 0,
        "per_device_train_batch_size": 2,
        "max_length": 64,
    }
    run_recipe(recipe, *(f"--{key}={value}" for key, value in settings.items()))
    assert "lose" not in caplog.text

    lines = [line.split(maxsplit=1) for line in str(read_run(tmp_path / "out").example).split("\n")]
    shown = [(kind, json.loads(text)) for kind, text in lines if kind in ("read", "trained")]
    asked, answer = ("<|user|>Where is the fox?<|end|>\n<|assistant|>", "In its den.<|end|>\n")
    if not chat:
        asked, answer = ROW["prompt"], ROW["chosen"] + "</s>"
    if "<s>" in adds:
        asked = "<s>" + asked
    assert shown[:2] == [("read", asked), ("trained", answer)]

    # as the reward model reads them
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    whole, _, _ = encode_answer(tokenizer, row["prompt"], row["chosen"])
    assert tokenizer.decode(whole) == asked + answer


def test_what_is_truncated_is_counted() -> None:
    rows = [
        {"prompt_ids": [1, 2], "chosen_ids": [3, 4, 5], "rejected_ids": [3, 4, 6]},
        {"prompt_ids": [1, 2], "chosen_ids": [3, 9, 5], "rejected_ids": [4, 4]},
        {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4]},
    ]
    assert count_truncated(rows, 4, keeps_end=False) == (2, 1)  # the first differs in its end
    assert count_truncated(rows, 4, keeps_end=True) == (2, 0)
    assert count_truncated(rows, 5, keeps_end=False) == count_truncated(rows, None, keeps_end=True)
    single = [{"prompt_ids": [1], "completion_ids": [2, 3]}]
    assert count_truncated(single, 2, keeps_end=False) == (1, 0)
