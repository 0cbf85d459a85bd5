"""Mark which translated pages of the docs are behind the page that they translate.

    python -m hfstack.cli.translations docs/zh/story.md ...   # after bringing a page up to date

A page of docs/zh/ begins with a comment that names its original and the digest that it had when it
was translated. Editing an English page never fails for want of a translation: `make docs` lists the
pages that are behind in docs/zh/README.md, and `make docs-check` asks that this list is right.
"""

import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from hfstack.errors import ConfigError

FOLDER = Path("docs") / "zh"
STATUS_PAGE = FOLDER / "README.md"
BEGIN, END = "<!-- translations: begin -->", "<!-- translations: end -->"
_HASH_DIGITS = 12
_MARK = re.compile(r"\A<!-- translation of (?P<source>\S+) at (?P<digest>[0-9a-f]{12}) -->\n")


@dataclass(frozen=True)
class Translation:
    """A translated page, its original, and whether that has changed since."""

    page: Path
    source: Path
    behind: bool


def read_translations(root: Path) -> list[Translation]:
    """Return every translated page below a checkout, in the order of their paths.

    Raises:
        ConfigError: a page names no original, or one that is not there.
    """
    found = []
    for path in sorted((root / FOLDER).rglob("*.md")):
        page = path.relative_to(root)
        mark = _MARK.match(path.read_text(encoding="utf-8"))
        if mark is None:
            raise ConfigError(
                f"{page} does not say what it translates; its first line has to be "
                "<!-- translation of docs/PAGE.md at DIGEST -->"
            )

        source = Path(mark["source"])
        if not (root / source).is_file():
            raise ConfigError(f"{page} translates {source}, which is not there")
        found.append(Translation(page, source, mark["digest"] != digest_of(root / source)))
    return found


def digest_of(page: Path) -> str:
    """Return the first digits of a page's SHA-256, with line ends as \\n."""
    text = page.read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]


def status_page(root: Path) -> str:
    """Return docs/zh/README.md with its list of the pages that are behind.

    Raises:
        ConfigError: the page lacks one of the two marks around the list.
    """
    text = (root / STATUS_PAGE).read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{STATUS_PAGE} needs the two lines {BEGIN} and {END}")

    translations = read_translations(root)
    behind = [one.page.relative_to(FOLDER) for one in translations if one.behind]
    lines = [f"共 {len(translations)} 页译文，全部与英文原文一致。"]
    if behind:
        count = f"共 {len(translations)} 页译文，其中 {len(behind)} 页"
        lines = [f"{count}的英文原文在翻译之后有改动：", ""]
        lines += [f"- [{FOLDER / page}]({page})" for page in behind]
    return "\n".join([before + begin, *lines, end]) + after


def mark_current(root: Path, page: Path) -> None:
    """Write into a translated page that it is up to date with its original."""
    path = root / page
    text = path.read_text(encoding="utf-8")
    mark = _MARK.match(text)
    if mark is None:
        raise ConfigError(f"{page} does not say what it translates")
    line = f"<!-- translation of {mark['source']} at {digest_of(root / mark['source'])} -->\n"
    path.write_text(line + text[mark.end() :], encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        mark_current(Path(), Path(name))
