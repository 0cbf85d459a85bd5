"""The page in a real browser: keys alone, reloads, a server that dies, sizes, accessibility.

Skipped with a message where there is no chromium (Debian: chromium and chromium-driver).
"""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from hfstack.errors import MachineError
from hfstack.feedback.access import LEAD
from hfstack.feedback.kinds import Item
from hfstack.feedback.store import latest_judgements, open_store
from tests.feedback.feedback_project import make_desk, pairs, served, token

HOSTILE = (
    '<script>document.title="owned"</script><img src="http://192.0.2.7/a.png">'
    "![x](http://192.0.2.7/b.png) [link](http://192.0.2.7/c) <style>body{display:none}</style>"
    '<svg onload="document.title=1"></svg> javascript:alert(1) \u202e http://192.0.2.7/d'
)


class Page:
    """What a person does with a browser."""

    def __init__(self, driver: Any, address: tuple[str, int], key: str, path: str = "") -> None:
        self.driver, self.place = driver, f"http://{address[0]}:{address[1]}/{path}"
        driver.get("about:blank")
        driver.get(f"{self.place}#{key}")

    def find(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def press(self, keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(keys).perform()

    def wait(self, name: str, text: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while text not in self.find(name).text:
            assert time.monotonic() < end, f"{name} is {self.find(name).text!r}, not {text!r}"
            time.sleep(0.05)

    def judge(self, keys: str, done: int) -> None:
        self.press(keys)
        self.wait("progress", f"{done} judged by you")


ENTER = "\ue007"


def requests_of(driver: Any) -> list[str]:
    """Return the addresses of what was requested since the last call."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def test_thirty_items_by_keys_with_undo_reload_tie_skip_flag_and_edit(
    browser: Any, tmp_path: Path
) -> None:
    desk = make_desk(tmp_path, pairs(30))
    with served(desk) as address:
        page = Page(browser, address, token(desk, "ann"))
        page.wait("progress", "0 judged by you")
        assert page.find("guidelines").text == "Prefer the kinder answer."
        assert not page.find("send").is_enabled(), "nothing is chosen yet"

        # the key of the good answer's side, as a person would read it
        def good() -> str:
            first = page.find("answers").text.splitlines()[1]
            return "1" if first.startswith("good") else "7"

        for done in range(1, 11):
            page.judge(good() + ENTER, done)
        page.judge("4" + ENTER, 11)  # a tie
        page.judge("s", 12)
        page.judge("u", 11)  # the skip is taken back
        browser.refresh()
        page.wait("progress", "11 judged by you")
        page.judge("u", 10)  # across a reload: the tie
        page.judge("4" + ENTER, 11)
        page.press("f")
        page.press("odd")
        page.judge("\ue00c" + "4" + ENTER, 12)  # Escape leaves the text

        # an earlier judgement is opened by keys alone, and changed
        browser.execute_script("document.querySelector('summary').focus()")
        page.press(ENTER)
        end = time.monotonic() + 10
        while not (rows := browser.find_elements("css selector", "#history button")):
            assert time.monotonic() < end
        assert len(rows) == 12
        rows[-1].send_keys(ENTER)
        page.wait("editing", "You are editing an earlier judgement")
        browser.execute_script("document.activeElement.blur()")
        page.judge("4" + ENTER, 12)
        page.wait("save", "Saved")
        for done in range(13, 31):
            page.judge(good() + ENTER, done)
        page.wait("thanks", "Done, thank you!")
        assert page.find("undo-last").is_enabled()

    store = open_store(tmp_path / "feedback.sqlite")
    latest = latest_judgements(store)
    assert len(latest) == 30
    choices = [one.body["verdict"]["choice"] for _, one in sorted(latest.items())]
    assert choices == [None] + [0] * 9 + [None, None] + [0] * 18
    flagged = [one.body for one in latest.values() if one.body["flag"]]
    assert [body["comment"] for body in flagged] == ["odd"]
    # in tenths of a second, and this hand is quick
    seconds = [one.body["seconds"] for one in latest.values()]
    assert min(seconds) >= 0 and 0 < max(seconds) < 60
    store.close()


def test_a_server_that_dies_in_the_middle_loses_and_doubles_nothing(
    browser: Any, tmp_path: Path
) -> None:
    desk = make_desk(tmp_path, pairs(6))
    with served(desk) as address:
        key = token(desk, "ann")
        page = Page(browser, address, key)
        page.wait("progress", "0 judged")
        page.judge("1" + ENTER, 1)
    page.press("u")
    page.wait("save", "Not done: the server cannot be reached. Try again.")
    page.press("1" + ENTER)
    page.wait("save", "Not saved yet: the server cannot be reached. Kept here")
    # each next try hides the button for a moment
    end = time.monotonic() + 20
    while not page.find("retry").is_displayed():
        assert time.monotonic() < end

    with served(make_desk(tmp_path, []), port=address[1]):
        browser.execute_script("document.getElementById('retry').click()")
        page.wait("progress", "2 judged by you")
        page.wait("save", "Saved")
    # this time the browser is closed and opened again before the server is back
    page.press("1" + ENTER)
    page.wait("save", "Not saved yet")
    with served(make_desk(tmp_path, []), port=address[1]):
        page = Page(browser, address, key)
        page.wait("progress", "3 judged by you")
    store = open_store(tmp_path / "feedback.sqlite")
    assert len(list(store.judgements())) == len(latest_judgements(store)) == 3
    store.close()


def test_a_judgement_outlives_a_stranger_at_the_address_a_full_disk_and_a_browser_without_storage(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    desk = make_desk(tmp_path, pairs(3))
    with served(desk) as address:
        page = Page(browser, address, token(desk, "ann"))
        page.wait("progress", "0 judged")
    # another project at the same address knows nobody: what was judged is kept for its own
    with served(make_desk(tmp_path / "other", pairs(1)), port=address[1]):
        page.press("1" + ENTER)
        page.wait("save", "Not saved yet: unknown token")
    with served(desk := make_desk(tmp_path, []), port=address[1]):
        page.wait("progress", "1 judged by you")

        def full(*_: Any) -> None:
            raise MachineError("feedback.sqlite cannot be written: database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(desk.store, "add_judgement", full)
            page.press("1" + ENTER)
            page.wait("save", "Not saved yet: feedback.sqlite cannot be written: database or disk")
        page.wait("progress", "2 judged by you")

        blocked = (
            "Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceeded') }"
        )
        browser.execute_script(blocked)
        page.press("1" + ENTER)
        page.wait("thanks", "Done")
    assert len(desk_judgements(tmp_path)) == 3 and not desk_judgements(tmp_path / "other")


def test_a_held_key_judges_one_item_and_other_alphabets_have_the_same_keys(
    browser: Any, tmp_path: Path
) -> None:
    def down(key: str, code: str, *, repeated: bool = False) -> None:
        event = {"type": "keyDown", "key": key, "code": code, "autoRepeat": repeated}
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", event)
        time.sleep(0.05)

    with served(desk := make_desk(tmp_path, pairs(8))) as address:
        page = Page(browser, address, token(desk, "ann"))
        page.wait("progress", "0 judged")
        down("s", "KeyS")
        page.wait("progress", "1 judged by you")
        for _ in range(10):
            down("s", "KeyS", repeated=True)
        assert "1 judged" in page.find("progress").text
        # a Cyrillic S, and the digit 1 of a French keyboard
        down("\u044b", "KeyS")
        page.wait("progress", "2 judged by you")
        down("&", "Digit1")
        page.judge(ENTER, 3)
    assert [one.action for one in desk_judgements(tmp_path)] == ["skip", "skip", "judge"]


def test_two_people_at_once_and_text_that_stays_text(browser: Any, tmp_path: Path) -> None:
    desk = make_desk(tmp_path, [Item(HOSTILE, [HOSTILE, "plain"])], overlap=2)
    with served(desk) as address:
        requests_of(browser)
        first = Page(browser, address, token(desk, "ann"))
        first.wait("progress", "0 judged")
        assert first.find("prompt").text.startswith("<script>") and browser.title == "Feedback"
        assert HOSTILE[:60] in first.find("answers").text
        tab = browser.current_window_handle
        browser.switch_to.new_window("tab")
        second = Page(browser, address, token(desk, "ben"))
        second.wait("progress", "0 judged")
        second.judge("1" + ENTER, 1)
        browser.close()
        browser.switch_to.window(tab)
        first.judge("7" + ENTER, 1)
        first.wait("thanks", "Done")

        asked = requests_of(browser)
        assert asked and all(url.startswith((first.place, "about:", "data:")) for url in asked), (
            "nothing is asked of anybody else"
        )
        stopped = Page(browser, address, "unknown")
        stopped.wait("save", "unknown token")
    found = [one.annotator for one in desk_judgements(tmp_path)]
    assert sorted(found) == ["ann", "ben"]


def desk_judgements(folder: Path) -> list[Any]:
    store = open_store(folder / "feedback.sqlite")
    found = list(store.judgements())
    store.close()
    return found


@pytest.mark.parametrize("kind", ["ranking", "thumbs", "ratings", "correction"])
def test_every_kind_is_judged_by_keys(browser: Any, tmp_path: Path, kind: str) -> None:
    answers = ["one", "two", "three"] if kind == "ranking" else ["one"]
    scales = ["kind", "true"] if kind == "ratings" else []
    desk = make_desk(tmp_path, [Item("Count.", answers)], kind=kind, scales=scales)
    keys = {"ranking": "131" + ENTER, "thumbs": "2" + ENTER, "ratings": "25" + ENTER}
    with served(desk) as address:
        page = Page(browser, address, token(desk, "ann"))
        page.wait("progress", "0 judged")
        shown = [text for text in page.find("answers").text.splitlines() if text in answers]
        if kind == "correction":
            page.find("corrected").send_keys(" more")
            page.find("corrected").send_keys("\ue009" + ENTER)  # Control, held
        else:
            page.press(keys[kind])
        page.wait("progress", "1 judged by you")
    ranks = dict(zip(shown, [1, 3, 1], strict=False))
    wanted = {
        "ranking": {"ranks": [ranks.get(answer) for answer in answers]},
        "thumbs": {"label": False},
        "ratings": {"scales": {"kind": 2, "true": 5}},
        "correction": {"text": "one more"},
    }
    assert [one.body["verdict"] for one in desk_judgements(tmp_path)] == [wanted[kind]]


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, from AXE_CORE or npm."""
    if place := os.environ.get("AXE_CORE"):
        return Path(place).read_text(encoding="utf-8")
    if shutil.which("npm") is None:
        pytest.skip("axe-core is not there: set AXE_CORE to its axe.min.js, or install npm")
    folder = tmp_path_factory.mktemp("axe")
    command = ["npm", "install", "--prefix", str(folder), "--no-audit", "axe-core@4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"npm gives no axe-core here: {done.stderr.splitlines()[:1]}")
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_accessible_and_fits(
    browser: Any, axe: str, tmp_path: Path, width: int, scheme: str
) -> None:
    long = Item("Tell me of a fox. " * 10, ["A fox ran home. " * 12, "word" * 60])
    desk = make_desk(tmp_path, [long, *pairs(2)])
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    with served(desk) as address:
        for name, path in (("ann", ""), (LEAD, "lead")):
            page = Page(browser, address, token(desk, name), path)
            page.wait("progress", "0 ")
            if path == "":
                page.press("2")
            wide = browser.execute_script("return document.documentElement.scrollWidth")
            assert wide <= width, "nothing is beside the screen"
            # through the DevTools protocol, which the page's policy does not bind
            run = f"{axe};axe.run().then(r => JSON.stringify(r.violations))"
            answer = browser.execute_cdp_cmd(
                "Runtime.evaluate",
                {"expression": run, "awaitPromise": True, "returnByValue": True},
            )
            assert json.loads(answer["result"]["value"]) == []
            if folder := os.environ.get("SCREENSHOTS"):
                browser.save_screenshot(f"{folder}/{path or 'page'}-{width}-{scheme}.png")
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
