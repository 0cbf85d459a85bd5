"""Record how a run rendered its rows, and hold what follows to it.

A model that learned on turns between the markers of a chat template has never seen plain text, and
the other way round: its answers, rewards and log-probabilities there mean little, and nothing
fails. So each run that trains on prompts with answers says in run.json whether they were turns or
text, with which template and which tokenizer; who trains the model further, or is scored by it,
follows that or is refused. What is published says it in publication.json.
"""

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hfstack.disk import hash_text, read_json_file
from hfstack.errors import CheckpointError, ConfigError
from hfstack.logs import get_logger
from hfstack.runs.record import RUN_FILE, RunRecord, read_run

if TYPE_CHECKING:  # so that a recipe without a model imports no torch
    from transformers import PreTrainedTokenizerBase

logger = get_logger(__name__)

PUBLICATION = "publication.json"
"""What hfstack publishes beside a model's files; `rendering` in it is that of run.json."""

Form = Literal["chat", "plain", "text"]
"""Turns through a chat template, prompt + answer as they are, or text without a prompt."""

PRETRAINING = frozenset({"pretrain_clm", "scaling_ladder"})
"""Recipes that read texts as documents, whatever template their tokenizer has."""

_SAID = {"chat": "conversations", "plain": "plain text"}
# What two tokenizers must encode alike: blanks, digits, accents, other scripts, a line break.
_PROBE_TEXT = "The owl's  two 12,5 été\n 狐狸 Über"


@dataclass(frozen=True)
class Rendering:
    """How the rows of a run became tokens.

    Args:
        form: what the rows were.
        tokenizer: digest of the vocabulary and of how a probe is encoded.
        template: digest of the chat template; "" for other forms.
    """

    form: Form
    tokenizer: str
    template: str = ""

    @property
    def chat(self) -> bool:
        return self.form == "chat"


def describe_rendering(tokenizer: "PreTrainedTokenizerBase", form: Form) -> dict[str, str]:
    """Return what run.json says of rows of this form and this tokenizer."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    ids = tokenizer(_PROBE_TEXT, verbose=False)["input_ids"]
    template = str(tokenizer.chat_template) if form == "chat" else ""
    digest = hash_text(repr((vocabulary, ids)))
    return asdict(Rendering(form, digest, hash_text(template) if template else ""))


def read_rendering(name: str | None) -> tuple[Rendering, str] | None:
    """Return how the rows of a model's run were rendered, and the file that says so.

    None for a model that no run of prompts with answers has written, such as most of the Hub.
    """
    if not name:
        return None

    values: dict[str, Any] = read_published_rendering(name)
    place = f"{name}/{PUBLICATION}"
    if found := _find_record(Path(name)):
        values, place = found[1].rendering, str(found[0] / RUN_FILE)
    if values.get("form") not in _SAID:
        return None
    return Rendering(values["form"], values.get("tokenizer", ""), values.get("template", "")), place


def read_published_rendering(name: str) -> dict[str, Any]:
    """Return what publication.json says of a model's rows; {} where there is none.

    Args:
        name: a folder, or the Hub id of a model.
    """
    if Path(name).expanduser().exists():
        return _read_publication(str(Path(name).expanduser() / PUBLICATION))
    return _read_publication(_find_on_hub(name))


def follow_rendering(
    name: str | None,
    asked: bool | None,
    *,
    flag: str,
    usual: bool,
    true_means: Form = "chat",
) -> bool:
    """Return the value of an option for the form of rows, as a model has learned it.

    Args:
        name: of the model that reads the rows.
        asked: the value that was given; None where it was left out.
        flag: the option.
        usual: its value for a model that says nothing.
        true_means: the form of rows where it is set.

    Raises:
        ConfigError: the value contradicts the model's run.json.
    """
    known = read_rendering(name)
    if known is None:
        return usual if asked is None else asked

    rendering, place = known
    right = rendering.form == true_means
    if asked is not None and asked != right:
        raise ConfigError(
            f"--{flag} {str(asked).lower()}, but {name} was trained on {_SAID[rendering.form]} "
            f"({place}): leave it out, or set --{flag} {str(right).lower()}"
        )
    if asked is None and right != usual:
        logger.info("--%s %s, as %s says", flag, str(right).lower(), place)
    return right


def record_rendering(
    record: RunRecord, name: str | None, tokenizer: "PreTrainedTokenizerBase", *, chat: bool
) -> None:
    """Hold the rows' form to that of the model, and put it into the record of a run.

    Raises:
        ConfigError: the model has learned the other form.
        CheckpointError: its tokenizer or chat template has changed since.
    """
    check_rendering(name, tokenizer, chat=chat)
    record.rendering = describe_rendering(tokenizer, "chat" if chat else "plain")


def check_rendering(name: str | None, tokenizer: "PreTrainedTokenizerBase", *, chat: bool) -> None:
    """Refuse rows that are rendered in another way than the model has learned.

    Args:
        name: of the model.
        tokenizer: that renders the rows for it.
        chat: the rows are conversations.

    Raises:
        ConfigError: the rows are of the other form.
        CheckpointError: the model's tokenizer or chat template has changed since.
    """
    known = read_rendering(name)
    if known is None:
        return

    rendering, place = known
    if rendering.chat != chat:
        raise ConfigError(
            f"the rows are {_SAID['chat' if chat else 'plain']}, but {name} was trained on "
            f"{_SAID[rendering.form]} ({place}): give rows of that form, or train it on the other "
            "with sft first"
        )

    now = describe_rendering(tokenizer, rendering.form)
    for part, what in {"template": "chat template", "tokenizer": "tokenizer"}.items():
        if now[part] != getattr(rendering, part):
            raise CheckpointError(
                f"{name} was trained with another {what} than this one ({place}): restore its "
                "files, and name no other tokenizer"
            )


@functools.cache
def _find_on_hub(name: str) -> str | None:
    """Return the publication.json of a model of the Hub as a file here, or None."""
    looks_local = name.startswith((".", "/", "~")) or name.endswith(".json") or name.count("/") > 1
    if looks_local:
        return None
    # Late, because it imports transformers.
    from transformers.utils.hub import cached_file

    try:
        return cached_file(
            name,
            PUBLICATION,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):
        return None  # whoever loads the model says what is wrong with its name


def _read_publication(file: str | None) -> dict[str, Any]:
    try:
        return read_json_file(Path(file))["rendering"] if file else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _find_record(folder: Path) -> tuple[Path, RunRecord] | None:
    """Return the run that made a model, from its folder or that of its checkpoint."""
    inside = folder.name.startswith("checkpoint-") or folder.name == "adapter"
    if not (folder / RUN_FILE).is_file() and inside:
        folder = folder.resolve().parent
    if not (folder / RUN_FILE).is_file():
        return None

    try:
        record = read_run(folder)
    except CheckpointError as error:
        logger.warning("how the rows of %s were rendered is not known: %s", folder, error)
        return None

    # A merged model reads what its parts did.
    if record.recipe == "merge_checkpoint" and record.parents:
        return _find_record(folder / record.parents[0])
    return folder, record
