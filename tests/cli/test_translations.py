"""Translated pages name their original, and a change of it is listed."""

from pathlib import Path

import pytest

from hfstack.cli.translations import mark_current, read_translations, status_page
from hfstack.errors import ConfigError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with one English page and its translation, and the page that lists them."""
    (tmp_path / "docs" / "zh").mkdir(parents=True)
    (tmp_path / "README.md").write_text("# hfstack\n")
    (tmp_path / "docs" / "data.md").write_text("# Data\n")
    marks = "<!-- translations: begin -->\n<!-- translations: end -->\n"
    for source, text in (("README.md", f"# 说明\n{marks}"), ("docs/data.md", "# 数据\n")):
        page = tmp_path / "docs" / "zh" / Path(source).name
        page.write_text(f"<!-- translation of {source} at 000000000000 -->\n{text}")
        mark_current(tmp_path, page.relative_to(tmp_path))
    return tmp_path


def test_a_changed_original_puts_its_translation_on_the_list(root: Path) -> None:
    assert [one.behind for one in read_translations(root)] == [False, False]
    assert "共 2 页译文，全部与英文原文一致。" in status_page(root)

    (root / "docs" / "data.md").write_text("# Data\n\nMore of it.\n")
    assert [one.page.name for one in read_translations(root) if one.behind] == ["data.md"]
    assert "其中 1 页" in status_page(root) and "- [docs/zh/data.md](data.md)" in status_page(root)

    mark_current(root, Path("docs/zh/data.md"))
    assert (root / "docs" / "zh" / "data.md").read_text().endswith("-->\n# 数据\n")
    assert not any(one.behind for one in read_translations(root))


def test_a_page_that_says_nothing_of_its_original_is_refused(root: Path) -> None:
    page = root / "docs" / "zh" / "data.md"
    page.write_text("# 数据\n")
    with pytest.raises(ConfigError, match=r"docs/zh/data.md does not say what it translates"):
        read_translations(root)

    page.write_text("<!-- translation of docs/gone.md at 000000000000 -->\n# 数据\n")
    with pytest.raises(ConfigError, match=r"translates docs/gone.md, which is not there"):
        read_translations(root)


def test_a_status_page_without_its_marks_is_refused(root: Path) -> None:
    page = root / "docs" / "zh" / "README.md"
    page.write_text(page.read_text().replace("<!-- translations: end -->", ""))
    with pytest.raises(ConfigError, match="needs the two lines <!-- translations: begin"):
        status_page(root)
