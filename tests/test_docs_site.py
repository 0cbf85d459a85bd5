"""The docs as a site: it builds without a warning, asks nothing of any other machine, and search
answers in a browser that opened it from the disk.

Needs the extra docs (`make docs-site`); the browser's part needs chromium too.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A link that leads nowhere, or any other warning, fails the build."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there_in_both_languages(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        html = site / page.relative_to(ROOT / "docs").with_suffix(".html")
        if page.name == "README.md":
            html = html.with_name("index.html")
        assert html.is_file(), page
    assert "<title>数据 - hfstack</title>" in (site / "zh" / "data.html").read_text(
        encoding="utf-8"
    )


def test_no_page_names_anything_to_load_from_outside(site: Path) -> None:
    """A link that a reader may click is no request; what a page loads by itself is."""
    loads = re.compile(
        r"<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\s(?:src|data)=[\"']?"
        r"(?:https?:)?//"
        r"|<link\b[^>]*?rel=[\"']?(?:stylesheet|preload|preconnect|icon|manifest)[^>]*?href=[\"']?"
        r"(?:https?:)?//"
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 100
    for page in pages:
        found = loads.search(page.read_text(encoding="utf-8"))
        assert found is None, f"{page.name} loads {found[0] if found else ''}"
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", text), sheet.name


def search(browser: Any, page: Path, words: str) -> list[str]:
    """The pages that the search box of a page finds."""
    browser.get(page.as_uri())
    field = browser.find_element("css selector", "input.md-search__input")
    browser.execute_script("arguments[0].focus()", field)
    field.send_keys(words)
    end = time.monotonic() + 30
    while not (found := browser.find_elements("css selector", "a.md-search-result__link")):
        assert time.monotonic() < end, f"nothing was found for {words}"
        time.sleep(0.1)
    return [link.get_attribute("href") for link in found]


def test_search_answers_from_the_disk_and_nothing_is_requested(site: Path, browser: Any) -> None:
    english = search(browser, site / "index.html", "preflight accumulation")
    assert any("preflight.html" in link for link in english), english
    chinese = search(browser, site / "zh" / "index.html", "奖励模型")
    assert any("/zh/" in link for link in chinese), chinese

    asked = [
        message["params"]["request"]["url"]
        for line in browser.get_log("performance")
        if (message := json.loads(line["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert asked and all(url.startswith(("file:", "data:", "about:")) for url in asked), asked


def test_the_dark_scheme_follows_the_system(site: Path, browser: Any) -> None:
    def background(scheme: str) -> str:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get((site / "index.html").as_uri())
        return browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    light, dark = background("light"), background("dark")
    assert light != dark
    assert (
        sum(map(int, re.findall(r"\d+", dark)[:3]))
        < 200
        < sum(map(int, re.findall(r"\d+", light)[:3]))
    )


def test_no_page_is_wider_than_a_telephone(site: Path, browser: Any) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    for name in ("index.html", "tasks/classify.html", "recipes/ppo.html", "zh/data.html"):
        browser.get((site / name).as_uri())
        width = browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= 390, f"{name} is {width} wide"
