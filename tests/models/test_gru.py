"""GRU and LSTM language models: the state as a cache, padding, packed documents, training, and the
Auto classes.
"""

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hfstack.errors import ConfigError
from hfstack.models.cache import CACHE_NAME, get_cache
from hfstack.models.gru import (
    GRUConfig,
    GRUForCausalLM,
    LSTMConfig,
    LSTMForCausalLM,
    RecurrentForCausalLM,
)
from hfstack.models.recurrence import RecurrentCache

VOCABULARY = 61
CONFIGS = {
    "gru": GRUConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2),
    "gru_narrow": GRUConfig(
        vocab_size=VOCABULARY, embedding_size=12, hidden_size=32, num_hidden_layers=2
    ),
    "gru_plain": GRUConfig(
        vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=1, residual=False
    ),
    "lstm": LSTMConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2),
    "lstm_untied": LSTMConfig(
        vocab_size=VOCABULARY, embedding_size=16, hidden_size=32, tie_word_embeddings=False
    ),
}
EXACT = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> RecurrentForCausalLM:
    """An untrained model, with larger weights than usual so that states, and mistakes in them, are
    far from zero.
    """
    set_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[request.param])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def tokens(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, VOCABULARY, (rows, columns), generator=torch.Generator().manual_seed(seed)
    )


@torch.no_grad()
def test_tokens_one_at_a_time_give_the_logits_of_the_full_forward(
    model: RecurrentForCausalLM,
) -> None:
    input_ids = tokens(3, 17)
    full = model(input_ids).logits
    cache, steps = None, []
    for column in range(17):
        output = model(input_ids[:, column : column + 1], **{CACHE_NAME: cache}, use_cache=True)
        cache = get_cache(output)
        steps.append(output.logits)
    assert isinstance(cache, RecurrentCache)
    assert cache.get_seq_length() == 17
    torch.testing.assert_close(torch.cat(steps, dim=1), full, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padding_changes_neither_logits_nor_state(model: RecurrentForCausalLM, side: str) -> None:
    prompts = [tokens(1, length, seed=length) for length in (5, 9, 1, 7)]
    rows, masks = [], []
    for prompt in prompts:
        missing = 11 - prompt.shape[1]
        left = {"left": missing, "right": 0, "both": missing // 2}[side]
        rows.append(torch.nn.functional.pad(prompt, (left, missing - left), value=3))
        masks.append(torch.nn.functional.pad(torch.ones_like(prompt), (left, missing - left)))
    input_ids, mask = torch.cat(rows), torch.cat(masks)
    output = model(input_ids, attention_mask=mask, use_cache=True)
    for row, prompt in enumerate(prompts):
        alone = model(prompt, use_cache=True)
        torch.testing.assert_close(output.logits[row][mask[row].bool()], alone.logits[0], **EXACT)
        for part, expected in zip(get_cache(output).state, get_cache(alone).state, strict=True):
            torch.testing.assert_close(part[:, row], expected[:, 0], **EXACT)


@torch.no_grad()
def test_a_row_of_padding_alone_keeps_its_state(model: RecurrentForCausalLM) -> None:
    start = get_cache(model(tokens(2, 4), use_cache=True))
    before = copy.deepcopy(start)
    mask = torch.tensor([[0, 0, 0], [0, 1, 1]])
    output = model(tokens(2, 3, seed=1), attention_mask=mask, **{CACHE_NAME: start})
    nothing = model(
        tokens(2, 3, seed=1),
        attention_mask=torch.zeros(2, 3),
        **{CACHE_NAME: copy.deepcopy(before)},
    )
    states = (before.state, get_cache(output).state, get_cache(nothing).state)
    for old, new, untouched in zip(*states, strict=True):
        torch.testing.assert_close(new[:, 0], old[:, 0], rtol=0.0, atol=0.0)
        torch.testing.assert_close(untouched, old, rtol=0.0, atol=0.0)
        assert not torch.allclose(new[:, 1], old[:, 1], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("training_path", [False, True])
def test_packed_documents_do_not_see_each_other(
    model: RecurrentForCausalLM, training_path: bool
) -> None:
    lengths = [[4, 1, 6, 2, 2], [15], [1, 1, 13], [7, 8]]
    position_ids = torch.stack(
        [torch.cat([torch.arange(length) for length in row]) for row in lengths]
    )
    input_ids = tokens(4, 15)
    packed = model(input_ids, position_ids=position_ids, use_cache=not training_path)

    for row, documents in enumerate(lengths):
        begin = 0
        for length in documents:
            alone = model(input_ids[row : row + 1, begin : begin + length], use_cache=True)
            torch.testing.assert_close(
                packed.logits[row, begin : begin + length], alone.logits[0], **EXACT
            )
            begin += length
        if not training_path:
            for part, expected in zip(get_cache(packed).state, get_cache(alone).state, strict=True):
                torch.testing.assert_close(part[:, row], expected[:, 0], **EXACT)

    mixed = model(input_ids).logits
    assert not torch.allclose(mixed[0, 4:], packed.logits[0, 4:], atol=1e-3)


def test_gradients_are_those_of_the_documents_alone(model: RecurrentForCausalLM) -> None:
    model.train()
    input_ids = tokens(2, 12)
    position_ids = torch.tensor([[*range(5), *range(7)], [*range(9), *range(3)]])
    labels = input_ids.masked_fill(position_ids == 0, -100)  # no loss across a border
    model(
        input_ids, position_ids=position_ids, labels=labels, num_items_in_batch=torch.tensor(20)
    ).loss.backward()
    packed = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for row, begin, end in [(0, 0, 5), (0, 5, 12), (1, 0, 9), (1, 9, 12)]:
        document = input_ids[row : row + 1, begin:end]
        model(document, labels=document, num_items_in_batch=torch.tensor(20)).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@torch.no_grad()
def test_generate_costs_one_token_a_step_and_a_state_of_fixed_size(
    model: RecurrentForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, sizes = [], []
    forward = model.model.forward

    def watched(input_ids: Tensor, **kwargs: object) -> object:
        output = forward(input_ids, **kwargs)
        seen.append(tuple(input_ids.shape))
        sizes.append(sum(part.numel() for part in get_cache(output).state))
        return output

    monkeypatch.setattr(model.model, "forward", watched)
    model.generate(tokens(2, 6), max_new_tokens=40, do_sample=False)
    assert seen == [(2, 6)] + [(2, 1)] * 39
    assert len(set(sizes)) == 1


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 4])
def test_generate_equals_generate_without_a_cache(model: RecurrentForCausalLM, beams: int) -> None:
    input_ids, mask = tokens(3, 8), torch.ones(3, 8, dtype=torch.long)
    mask[0, :5], mask[2, :1] = 0, 0
    settings = {
        "attention_mask": mask,
        "max_new_tokens": 12,
        "num_beams": beams,
        "do_sample": False,
        "pad_token_id": 0,
    }
    with_cache = model.generate(input_ids, **settings)
    torch.testing.assert_close(with_cache, model.generate(input_ids, use_cache=False, **settings))
    assert with_cache.shape == (3, 20)


@torch.no_grad()
def test_a_left_padded_batch_generates_what_each_prompt_generates_alone(
    model: RecurrentForCausalLM,
) -> None:
    prompts = [tokens(1, length, seed=length) for length in (3, 8, 5)]
    input_ids = torch.cat(
        [torch.nn.functional.pad(prompt, (8 - prompt.shape[1], 0)) for prompt in prompts]
    )
    mask = torch.cat(
        [torch.nn.functional.pad(torch.ones_like(p), (8 - p.shape[1], 0)) for p in prompts]
    )
    together = model.generate(
        input_ids, attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=0
    )
    for row, prompt in enumerate(prompts):
        ones = torch.ones_like(prompt)
        alone = model.generate(
            prompt, attention_mask=ones, max_new_tokens=10, do_sample=False, pad_token_id=0
        )
        assert together[row, 8:].tolist() == alone[0, prompt.shape[1] :].tolist()


@torch.no_grad()
def test_sampling_is_seeded_and_a_returned_cache_continues(model: RecurrentForCausalLM) -> None:
    input_ids = tokens(2, 5)
    samples = []
    for _ in range(2):
        set_seed(3)
        samples.append(
            model.generate(
                input_ids, max_new_tokens=8, do_sample=True, top_k=20, num_return_sequences=2
            )
        )
    assert samples[0].shape == (4, 13)
    torch.testing.assert_close(samples[0], samples[1])

    first = model.generate(
        input_ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True
    )
    more = model.generate(
        first.sequences, max_new_tokens=4, do_sample=False, **{CACHE_NAME: get_cache(first)}
    )
    torch.testing.assert_close(more, model.generate(input_ids, max_new_tokens=8, do_sample=False))


def test_a_cache_of_another_kind_is_refused(model: RecurrentForCausalLM) -> None:
    with pytest.raises(TypeError, match="DynamicCache, not a RecurrentCache"):
        model(tokens(3, 1), past_key_values=DynamicCache())
    with pytest.raises(TypeError, match="DynamicCache, not a RecurrentCache"):
        model(tokens(3, 1), cache=DynamicCache())


@torch.no_grad()
def test_logits_to_keep_embeddings_and_hidden_states(model: RecurrentForCausalLM) -> None:
    input_ids = tokens(2, 6)
    full = model(input_ids, output_hidden_states=True)
    torch.testing.assert_close(
        model(input_ids, logits_to_keep=2).logits, full.logits[:, -2:], **EXACT
    )
    torch.testing.assert_close(
        model(input_ids, logits_to_keep=torch.tensor([0, 3])).logits,
        full.logits[:, [0, 3]],
        **EXACT,
    )

    embedded = model.get_input_embeddings()(input_ids)
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, full.logits, **EXACT)
    assert len(full.hidden_states) == model.config.num_hidden_layers + 1
    torch.testing.assert_close(
        model.lm_head(model.head_projection(full.hidden_states[-1])), full.logits, **EXACT
    )
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()


@torch.no_grad()
def test_saved_and_reloaded_through_the_auto_classes(
    model: RecurrentForCausalLM, tmp_path: Path, tiny_tokenizer, capsys: pytest.CaptureFixture
) -> None:
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(reloaded) is type(model)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token == tiny_tokenizer.pad_token

    tied = model.config.tie_word_embeddings
    assert (reloaded.lm_head.weight is reloaded.get_input_embeddings().weight) == tied
    input_ids = tokens(2, 6)
    torch.testing.assert_close(
        reloaded(input_ids).logits, model(input_ids).logits, rtol=0.0, atol=0.0
    )

    backbone = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(
        backbone(input_ids).last_hidden_state,
        model.model(input_ids).last_hidden_state,
        rtol=0.0,
        atol=0.0,
    )
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half(input_ids).past_key_values.state[0].dtype == torch.bfloat16


def test_a_new_model_begins_near_the_uniform_distribution_and_remembers() -> None:
    set_seed(0)
    for config in CONFIGS.values():
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        input_ids = tokens(4, 32)
        loss = model(input_ids, labels=input_ids).loss
        assert abs(loss.item() - torch.log(torch.tensor(VOCABULARY)).item()) < 0.2
        cell = model.model.layers[0].cell
        width = config.hidden_size
        for gate in cell.weight_hh_l0.split(width):
            torch.testing.assert_close(gate @ gate.T, torch.eye(width), rtol=0.0, atol=1e-4)
        forget = cell.bias_ih_l0[width : 2 * width]
        assert forget.eq(1.0 if isinstance(cell, torch.nn.LSTM) else 0.0).all()


def test_resized_embeddings_stay_tied(model: RecurrentForCausalLM) -> None:
    model.resize_token_embeddings(VOCABULARY + 4, mean_resizing=False)
    assert model(tokens(1, 3)).logits.shape[-1] == model.config.vocab_size == VOCABULARY + 4
    assert (
        model.lm_head.weight is model.get_input_embeddings().weight
    ) == model.config.tie_word_embeddings


@pytest.mark.parametrize("config_class", [GRUConfig, LSTMConfig])
@pytest.mark.parametrize("bf16", [False, True])
def test_trainer_learns_and_the_saved_model_continues(
    config_class, bf16: bool, tmp_path: Path
) -> None:
    set_seed(0)
    model = AutoModelForCausalLM.from_config(
        config_class(vocab_size=VOCABULARY, hidden_size=32, dropout=0.1)
    )

    counting = torch.arange(24 * 8).remainder(VOCABULARY).view(24, 8).tolist()
    dataset = Dataset.from_list([{"input_ids": row, "labels": row} for row in counting])
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=60,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        bf16=bf16,
        use_cpu=True,
        report_to="none",
        logging_steps=5,
        disable_tqdm=True,
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=60,
        dataloader_pin_memory=False,
    )

    trainer = Trainer(model=model, args=arguments, train_dataset=dataset, eval_dataset=dataset)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[0] > 3.0 > 1.5 > losses[-1]
    assert trainer.evaluate()["eval_loss"] < 1.5

    trainer.save_model(str(tmp_path / "final"))
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert reloaded.dtype == torch.float32
    prompt = torch.tensor([[10, 11, 12]])
    continued = reloaded.generate(prompt, max_new_tokens=3, do_sample=False)
    assert continued[0, 3:].tolist() == [13, 14, 15]


def test_loss_is_divided_by_num_items_in_batch(model: RecurrentForCausalLM) -> None:
    input_ids = tokens(2, 9)
    mean = model(input_ids, labels=input_ids).loss
    total = model(input_ids, labels=input_ids, num_items_in_batch=torch.tensor(4)).loss
    torch.testing.assert_close(total, mean * 16 / 4)


@torch.no_grad()
@pytest.mark.parametrize("kind", [GRUForCausalLM, LSTMForCausalLM])
@pytest.mark.parametrize("residual", [True, False])
def test_autocast_keeps_the_state_in_fp32(kind: type[RecurrentForCausalLM], residual: bool) -> None:
    set_seed(0)
    model = kind(
        kind.config_class(
            vocab_size=VOCABULARY, embedding_size=16, hidden_size=32, residual=residual
        )
    ).eval()
    input_ids = tokens(2, 30)
    position_ids = torch.arange(30).remainder(12)[None]
    for settings in ({}, {"position_ids": position_ids}):
        exact = model(input_ids, **settings)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(input_ids, **settings)
            more = model(input_ids[:, :1], **{CACHE_NAME: get_cache(output)})
        assert {part.dtype for part in get_cache(output).state} == {torch.float32}
        torch.testing.assert_close(output.logits.float(), exact.logits, rtol=0.0, atol=0.02)
        assert get_cache(more).get_seq_length() == 31


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0 in a hfstack_gru config: it must be at least 1"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"dropout": 1.0}, r"dropout is 1.0 in a hfstack_gru config: it must be in \[0, 1\)"),
    ],
)
def test_impossible_configs_are_refused_in_one_line(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        GRUConfig(**settings)
    assert "\n" not in str(error.value)


def test_assisted_decoding_is_refused(model: RecurrentForCausalLM) -> None:
    with pytest.raises(ValueError, match="not supported with stateful models"):
        model.generate(tokens(1, 3), assistant_model=model, max_new_tokens=2)
