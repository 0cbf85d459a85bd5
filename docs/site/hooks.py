"""Adapt pages that GitHub shows to the site: their links, and the order of its menu."""

import re
from pathlib import Path

REPOSITORY = "https://github.com/hfstack/hfstack/blob/main/"
FIRST = ["Home", "Tasks", "questions.md", "story.md", "chat.md", "Recipes"]  # then pages by name
LAST = ["Reference", "中文"]
TRANSLATION = re.compile(r"\A<!-- translation of .*? -->\n")
LINK = re.compile(r"\]\((?P<path>(?:\.\./)+[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Return the page with links that leave docs/ turned into links to the repository."""
    docs = Path(config.docs_dir).resolve()
    here = Path(page.file.abs_src_path).resolve().parent

    def outside(match: re.Match[str]) -> str:
        target = (here / match["path"]).resolve()
        if target.is_relative_to(docs):
            return match[0]
        path = target.relative_to(docs.parent).as_posix()
        return f"]({REPOSITORY}{path}{match['anchor'] or ''})"

    # A title is taken from a heading that stands first; a translation's mark stands before it.
    return LINK.sub(outside, TRANSLATION.sub("", markdown))


def on_nav(nav, config, files):
    """Return the menu with what most readers want first, and the generated pages last."""
    for item in nav.items:
        if item.is_section and item.title == "Zh":
            item.title = "中文"
    nav.items.sort(key=place)
    return nav


def place(item) -> int:
    """Return where an entry of the menu stands."""
    names = [item.title, "Home"] if item.is_page and item.is_homepage else [item.title]
    if item.is_page:
        names.append(item.file.src_uri)
    for name in names:
        if name in FIRST:
            return FIRST.index(name)
        if name in LAST:
            return len(FIRST) + 1 + LAST.index(name)
    return len(FIRST)
