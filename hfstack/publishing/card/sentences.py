"""What a model card says about a kind of model: what it is, what it is for, its limits, and how it is loaded."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from hfstack.errors import ConfigError
from hfstack.publishing.files import PublishedKind

_WHAT = {
    "causal": "language model",
    "masked": "masked language model",
    "seq2seq": "sequence-to-sequence model",
    "reward": "reward model",
    "classifier": "text classifier",
    "tagger": "token classifier",
    "question answering": "model that finds answers in a text",
    "model": "model",
    "tokenizer": "tokenizer",
    "dataset": "dataset",
}
_HOW = {
    "pretrain_clm": "pretrained on text with the next-token loss",
    "pretrain_mlm": "pretrained on text by filling masks",
    "sft": "tuned on instructions and answers (supervised fine-tuning)",
    "dpo": "tuned on pairs of better and worse answers without a reward model (DPO)",
    "kto": "tuned on answers marked good or bad (KTO)",
    "rloo": "trained against rewards by reinforcement learning (RLOO)",
    "grpo": "trained against rewards by reinforcement learning (GRPO)",
    "ppo": "trained against rewards by reinforcement learning (PPO)",
    "reward": "trained on pairs of better and worse answers, to give an answer one number",
    "classify": "trained on labelled texts",
    "tag": "trained on texts whose words are labelled",
    "answer": "trained on questions whose answers stand in a text",
    "seq2seq": "trained on pairs of a text and what it shall become",
    "orpo": "tuned on pairs of better and worse answers in one stage with the answers themselves (ORPO)",
    "tokenizer": "trained on text",
    "preferences": "pairs of a better and a worse answer to the same prompt",
    "clean": "texts that were repaired, filtered and freed of duplicates",
    "demo_corpus": "generated short stories",
}
_USE = {
    "causal": "Continuing or answering text like that it was trained on, research and teaching.",
    "masked": "Filling masks, and as the start for classifiers and reward models.",
    "reward": "Ordering answers to prompts like those of its training data, while a model is trained or chosen.",
    "classifier": "Labelling texts like those it was trained on, with the labels in `config.json`.",
    "tagger": "Labelling the words of texts like those it was trained on.",
    "question answering": "Finding answers that stand in a given text.",
    "seq2seq": "Turning texts like those it was trained on into what its training pairs show.",
    "tokenizer": "Splitting text like that it was trained on; a model only works with the tokenizer of its training.",
    "dataset": "Training and measuring models, with the limits below.",
}
_LIMITS = {
    "causal": "It writes what is likely, not what is true, and may repeat what is wrong or hurtful in its data.",
    "masked": "Its fillings follow_chain its data, with what is wrong or one-sided there.",
    "reward": "Its number means little for answers unlike its training data, and a model that is trained against it "
    "for long learns to please it and not people. Rewards of different prompts do not compare.",
    "classifier": "Texts of another kind, length or language than its data get a label all the same.",
    "tagger": "Words of another kind of text than its data get labels all the same.",
    "question answering": "It points at a stretch of the text also where the text holds no answer.",
    "seq2seq": "It writes what is likely: a fluent output may leave out, add or turn around what the source says.",
    "dataset": "Labels that a rule or a model gave are that judge's, not people's.",
}
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z]+)?|code|multilingual")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_REINFORCED = frozenset({"rloo", "grpo", "ppo"})


@dataclass(frozen=True)
class Words:
    """What only a person can say about a model; what is left out is said to be missing.

    Args:
        licence: a licence id of the Hub such as `apache-2.0`.
        language: ISO 639 codes.
        intended_use: replaces the sentence that fits the kind.
        limits: further limits, in sentences.
        data_licences: licence by the end of a data path, such as `corpus/raw.jsonl`.

    Raises:
        ConfigError: the licence or a language is none that the Hub takes.
    """

    licence: str | None = None
    language: list[str] = field(default_factory=list)
    intended_use: str | None = None
    limits: list[str] = field(default_factory=list)
    data_licences: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.licence is not None and not _LICENCE.fullmatch(self.licence):
            raise ConfigError(
                f"--license {self.licence}: give its id on the Hub, such as apache-2.0 or cc-by-4.0"
            )
        for language in self.language:
            if not _LANGUAGE.fullmatch(language):
                raise ConfigError(
                    f"--language {language}: give an ISO 639 code such as en, or multilingual"
                )


def by_path(licences: Sequence[str]) -> dict[str, str]:
    """Return `path=licence` entries as a mapping.

    Raises:
        ConfigError: one has no path or no licence.
    """
    found = {}
    for one in licences:
        path, _, licence = one.rpartition("=")
        if not path or not licence:
            raise ConfigError(
                f"--data_licenses {one}: write path=licence, such as raw.jsonl=cc-by-4.0"
            )
        found[path] = licence
    return found


def what_it_is(kind: PublishedKind, recipe: str, *, size: str, base: str | None) -> str:
    """Return the opening sentence.

    Args:
        size: such as `467,584 parameters`, or "".
        base: what it was made from, or None when it began with random weights or is no model.
    """
    what = f"LoRA adapter that makes a {_WHAT[kind.name]}" if kind.adapter else _WHAT[kind.name]
    extra = f" of {size}" if size else ""
    how = _HOW.get(recipe, f"made by the recipe `{recipe}`")
    origin = f", starting from {base}" if base else ""
    if kind.name == "dataset":
        return f"A dataset: {how}."
    article = "An" if what[0] in "aeiou" else "A"
    return f"{article} {what}{extra}, {how}{origin}."


def intended_use(kind: PublishedKind, words: Words) -> str:
    """Return what it is for: the author's own words, or what fits the kind."""
    return words.intended_use or _USE.get(kind.name, "Not stated by its author.")


def limits(
    kind: PublishedKind, recipe: str, words: Words, *, parameters: float | None, context: int | None
) -> list[str]:
    """Return the limits that follow_chain from what it is, then the author's own."""
    found = [_LIMITS[kind.name]] if kind.name in _LIMITS else []
    if recipe in _REINFORCED:
        found.append(
            "It was trained towards a reward. A higher reward is not the same as a better answer: see what else was "
            "measured."
        )
    if parameters is not None and parameters < 50e6:
        found.append(
            "It is very small: it serves to show and to test, and knows next to nothing about the world."
        )
    if context is not None:
        found.append(f"It reads at most {context:,} tokens at once.")
    found.append("It was not tested for safety. Do not use it where a wrong output does harm.")
    return [*found, *words.limits]


def loading(kind: PublishedKind, repo: str, *, chat: bool, base: str, part: str = "") -> str:
    """Return how it is loaded, as Markdown with code.

    Args:
        repo: Hub id or path that `from_pretrained` takes.
        chat: the tokenizer has a chat template.
        base: the model that an adapter belongs to.
        part: of a dataset, the configuration to load, "" for its default.
    """
    if kind.name == "dataset":
        named = f', "{part}"' if part else ""
        return _code(f'from datasets import load_dataset\n\nrows = load_dataset("{repo}"{named})')
    if kind.name == "tokenizer":
        return _code(
            f'from transformers import AutoTokenizer\n\ntokenizer = AutoTokenizer.from_pretrained("{repo}")'
        )
    parts: list[str] = []
    first = ""
    if kind.recurrent:
        parts.append(
            "Its architecture is not part of transformers: `pip install hfstack`, and import it before anything is "
            "loaded."
        )
        first = "import hfstack.models.gru  # registers the architecture\n"
    loader, package = kind.auto_class, "transformers"
    arguments = f", num_labels={kind.labels}" if kind.labels else ""
    if kind.adapter:
        parts.append(
            f"It is an adapter: `pip install peft`. Its base, `{base}`, is loaded along with it."
        )
        loader, package = kind.auto_class.replace("AutoModel", "AutoPeftModel"), "peft"
    lines = f"from transformers import AutoTokenizer{'' if kind.adapter else f', {loader}'}\n"
    lines += f"from {package} import {loader}\n" if kind.adapter else ""
    lines += f'\ntokenizer = AutoTokenizer.from_pretrained("{repo}")\n'
    lines += f'model = {loader}.from_pretrained("{repo}"{arguments}).eval()\n'
    return "\n\n".join([*parts, _code(first + lines + _use(kind, chat=chat))])


def _use(kind: PublishedKind, *, chat: bool) -> str:
    """The lines after loading."""
    if kind.name == "causal" and chat:
        return (
            'messages = [{"role": "user", "content": "Tell me a story about a brave fox."}]\n'
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n)\n'
            "outputs = model.generate(**inputs, max_new_tokens=100, do_sample=True)\n"
            'print(tokenizer.decode(outputs[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'
        )
    if kind.name == "causal":
        return (
            'inputs = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)\n'
            "outputs = model.generate(**inputs, max_new_tokens=100, do_sample=True)\n"
            "print(tokenizer.decode(outputs[0], skip_special_tokens=True))"
        )
    if kind.name == "reward" and chat:
        return (
            'messages = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "An apple."}]\n'
            'inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")\n'
            "reward = model(**inputs).logits[0, 0].make_item()  # higher is better, for answers to one prompt"
        )
    if kind.name == "masked":
        return (
            'inputs = tokenizer(f"The fox {tokenizer.mask_token} home.", return_tensors="pt")\n'
            'where = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]\n'
            "print(tokenizer.decode(model(**inputs).logits[0, where].topk(5).indices))"
        )
    if kind.name == "classifier":
        return (
            'logits = model(**tokenizer("Some text", return_tensors="pt")).logits[0]\n'
            "print(model.config.id2label[logits.argmax().make_item()])"
        )
    return 'outputs = model(**tokenizer("Some text", return_tensors="pt"))'


def _code(text: str) -> str:
    return f"```python\n{text}\n```"
