"""Read the story templates, which are text files under `templates/`.

A file holds blocks (`== lost`), a block sections (`-- setup`), a section one template a line. A
template that starts with traits, as in `@lazy,proud `, is for heroes with one of them only. Lines
that start with `#` are notes.

Facts that a template may use: H the hero's name, S the name or the pronoun, he, him, his, self,
    his_own, kind, kinds, home, limb, limbs, trait; F the friend ("a fox named Tom" at first, "Tom"
    from then on), FX the friend as a stranger, FN the bare name, fhe, fhim, fhis, fhimself, fkind,
    fhome; E an elder, his_elder; kin a relative; weather; title of the plot; place, the_place, at,
    to, spot, spot2, from_place, from_far; a, o, oa the thing ("a red kite", "kite", "red kite")
    with oit, ois, owas, oare, all_mine for its number.
"""

from dataclasses import dataclass
from importlib import resources

Block = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Plot:
    """One schema: templates for each step of a story; a story uses one of each.

    `deeds` maps a trait to what a hero with it does; `outcomes` maps "<trait> <ending>" or "<group>
    <ending>" to how it ends, where the group of a trait is its value in `lexicon.TRAITS`. An
    outcome of the trait itself goes first."""

    name: str
    title: str
    roles: tuple[str, ...]
    hooks: tuple[str, ...]
    setup: tuple[str, ...]
    trouble: tuple[str, ...]
    talk: tuple[str, ...]
    deeds: Block
    outcomes: Block


def read_blocks(name: str) -> dict[str, Block]:
    """Return the blocks of `templates/<name>.txt` as block -> section -> templates."""
    text = (resources.files("hfstack.demo") / "templates" / f"{name}.txt").read_text(
        encoding="utf-8"
    )
    blocks: dict[str, dict[str, list[str]]] = {}
    block: dict[str, list[str]] = {}

    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("== "):
            block = blocks[line[3:]] = {}
        elif line.startswith("-- "):
            lines = block[line[3:]] = []
        elif line and not line.startswith("#"):
            lines.append(line)

    return {
        title: {section: tuple(found) for section, found in parts.items()}
        for title, parts in blocks.items()
    }


def read_plots(*names: str) -> tuple[Plot, ...]:
    """Return every plot in the named files, in the order in which they stand there."""
    return tuple(_plot(name, block) for file in names for name, block in read_blocks(file).items())


def _plot(name: str, block: Block) -> Plot:
    def by_key(prefix: str) -> Block:
        return {
            section.removeprefix(prefix): lines
            for section, lines in block.items()
            if section.startswith(prefix)
        }

    return Plot(
        name=name,
        title=block["title"][0],
        roles=block["roles"],
        hooks=block["hooks"],
        setup=block["setup"],
        trouble=block["trouble"],
        talk=block["talk"],
        deeds=by_key("deeds "),
        outcomes=by_key("outcomes "),
    )
