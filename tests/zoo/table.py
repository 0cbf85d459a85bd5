"""Write docs/models.md of the results of the matrix."""

import re
import textwrap
from collections import Counter

from transformers import __version__

from tests.zoo.cells import CELLS, Cell
from tests.zoo.families import CAUSAL, ENCODER, ENCODER_DECODER, families
from tests.zoo.properties import PROPERTIES

BUILD = "build"

_INTRODUCTION = """\
# Models

Which families of transformers {version} work here, measured on a tiny newly initialised model of
each: two layers, width 32. `make zoo` runs the matrix and writes this page; what stands here took
{minutes} minutes of CPU. A cell is one recipe on one family. It works, or is refused in one line,
which is at the end of the page.
"""
_KINDS = {
    CAUSAL: """\
## Causal language models

{built} of the {families} families that `AutoModelForCausalLM` knows.

{counts}

- **packing**: how packed documents are kept apart (`sft --packing`, `pretrain_clm
  --isolate_documents`): by restarting positions or by a block-diagonal mask, and how much of the
  document before is left in the logits, as a share of the largest one.
- **fused loss**: whether `--fused_loss` computes the loss without all logits; it then equals the
  model's own loss on a batch to 1e-5.
- **head**: the modules between hidden states and logits, with the scale and the soft cap found.
- **engine**: what generates for `ppo`, `rloo` and `grpo` with log-probabilities that equal those of
  the full pass to 1e-4 nats, with all dropout off: the native engine, or the model's own
  `generate`.
- **pretrain**, **sft**: the loss of the first batch equals, to 1e-5, that of plain transformers on
  each of its documents alone, without packing, padding or a fused head; **orpo**'s that of each of
  its answers alone. **dpo**, **kto**: the first loss is ln 2 and 1/2 to 1e-5. **ppo**, **rloo**,
  **grpo**: the first KL is 0 to 1e-6, and the first ratio 1 to 1.9e-6, which is four roundings of a
  log-probability near -5.8 in fp32: decoding with a cache sums in another order than the full pass.
  The farthest from 1 is {ratio}.
  **publish**: what is read from the folder that a fine-tuned model was published to gives its
  logits. **evaluate**: the loss of `evaluate_lm` equals, to 1e-5, that of plain transformers on
  each document alone. All: what was saved gives the logits of what was trained.
""",
    ENCODER: """\
## Encoders

{built} of the {families} families that `AutoModelForMaskedLM`, `...ForSequenceClassification`,
`...ForTokenClassification` or `...ForQuestionAnswering` knows; of the last three, those that are no
causal language model too.

{counts}

- **padding**: how far the logits of a padded row are from those of the row alone, as a share of the
  largest one; of a family without a masked language model, its hidden states.
- **publish**: what is read from the folder that a classifier was published to gives its logits.
  **generate** fills masks. **evaluate** is refused: the loss of the next token is none of theirs.
""",
    ENCODER_DECODER: """\
## Encoder-decoders

{built} of the {families} families that `AutoModelForSeq2SeqLM` knows.

{counts}

- **publish**: what is read from the folder that a translator was published to gives its logits.
  **evaluate**, **generate** are refused: `predict` writes what an encoder-decoder says.
""",
}


def write_table(cells: list[Cell]) -> str:
    """Return the page: counts, a row for each family, and why the rest is refused."""
    minutes = round(sum(cell.figures.get("cpu_s", 0.0) for cell in cells) / 60)
    lines = [_INTRODUCTION.format(version=__version__, minutes=minutes)]
    for kind in _KINDS:
        if any(cell.kind == kind for cell in cells):
            lines += _section(kind, [cell for cell in cells if cell.kind == kind])

    lines += ["## Refused, and why", ""]
    for cell in sorted(cells, key=lambda cell: (cell.kind, cell.family)):
        if cell.state != "works":
            state = "" if cell.state == "refused" else f"**{cell.state}** "
            reason = f"- {cell.family}, {cell.name}: {state}{_plain(cell.reason)}"
            lines += textwrap.wrap(
                reason, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
    return "\n".join(lines) + "\n"


def _section(kind: str, cells: list[Cell]) -> list[str]:
    """Return the lines about one kind of model."""
    by_family: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        by_family.setdefault(cell.family, {})[cell.name] = cell
    built = {family: found for family, found in by_family.items() if BUILD not in found}
    names = [*PROPERTIES[kind], *CELLS[kind]]
    columns = [name for name in names if any(name in found for found in built.values())]

    introduction = _KINDS[kind].format(
        built=len(built),
        families=len(families(kind)),
        counts="\n".join(_counts(columns, built)),
        ratio=_farthest_ratio(cells),
    )
    lines = [introduction, f"| family | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for family, found in sorted(built.items()):
        shown = [_shown(found.get(name), name in PROPERTIES[kind]) for name in columns]
        lines.append(f"| {family} | {' | '.join(shown)} |")
    return [*lines, ""]


def _farthest_ratio(cells: list[Cell]) -> str:
    """Return by how much a first ratio differs from 1 at most, and where."""
    ratios = [(abs(cell.figures.get("policy/ratio", 1.0) - 1), cell) for cell in cells]
    distance, cell = max(ratios, key=lambda ratio: ratio[0])
    return f"{distance:.1e} away, of {cell.family} by {cell.name}" if distance else "1 itself"


def _counts(columns: list[str], built: dict[str, dict[str, Cell]]) -> list[str]:
    """Return a table of how often each column works."""
    rows = ["| | works | refused | other |", "|---|---|---|---|"]
    for name in columns:
        states = Counter(found[name].state for found in built.values() if name in found)
        other = sum(states.values()) - states["works"] - states["refused"]
        rows.append(f"| {name} | {states['works']} | {states['refused']} | {other} |")
    return rows


def _shown(cell: Cell | None, with_figure: bool) -> str:
    if cell is None:
        return "not run"
    if cell.state != "works":
        return cell.state
    return _plain(cell.reason) if with_figure else "works"


def _plain(text: str) -> str:
    """Return a reason that neither breaks a table nor names a folder of this machine."""
    text = re.sub(r"'transformers(?:\.\w+)*\.(\w+)'", r"\1", text)  # the class's name alone
    words = ["<model>" if word.lstrip("'\"(").startswith("/") else word for word in text.split()]
    return " ".join(words).replace("|", "/")
