"""The pages in headless Chromium, from the file system, with the network off."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from in_process import run_here

from diffem.cli.report import write_report
from diffem.report.page import write_run_page
from diffem.report.summary import RunReport
from diffem.storage.status import RunStatus, State

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [  # of what looks for a network by itself, and of what needs more than a sandboxed root
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE, DESKTOP = (390, 844), (1200, 900)
RUN = (
    "corruption=mask",
    "em.rounds=2",
    "prior={steps:2}",
    "metric.prior=20",
    "metric.metrics={psnr:{_target_:diffem.metric.PSNR}}",
)
VIEWS = [(size, scheme) for size in (PHONE, DESKTOP) for scheme in ("light", "dark")]
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, of the system: no package brings one along."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine (Debian: apt-get install chromium)")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is missing: pip install '.[browser]'"
    )
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a finished run, of one that failed midway, and of both together."""
    folder = tmp_path_factory.mktemp("runs")
    done = run_here(folder / "run", *RUN)
    on_round = RunReport.on_round

    def fail(self: RunReport, module: Any, round: Any) -> None:
        if round.number == 2:
            raise RuntimeError("as it was told")
        on_round(self, module, round)

    with patch.object(RunReport, "on_round", fail), pytest.raises(RuntimeError):
        run_here(folder / "failed", *RUN)
    both = write_report([done, folder / "failed"], folder / "both.html")
    return {"run": done / "report.html", "failed": folder / "failed/report.html", "both": both}


class View:
    """A page in a window, and what went wrong in it."""

    def __init__(self, browser: Any, path: Path, size: tuple[int, int], scheme: str) -> None:
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, offline=True
        )
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", self._on_request)
        self.page.goto(path.as_uri())

    def _on_request(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.faults.append(f"request of {request.url}")

    def __enter__(self) -> "View":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.mark.parametrize(("size", "scheme"), VIEWS)
@pytest.mark.parametrize("name", ["run", "failed", "both"])
def test_a_page_is_whole(
    name: str, size: tuple[int, int], scheme: str, browser: Any, pages: dict[str, Path]
) -> None:
    """No error, no request, all images decoded, nothing wider than the window, no axe fault."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="axe-playwright-python is missing: pip install '.[browser]'",
    )
    with View(browser, pages[name], size, scheme) as view:
        decoded = "images => images.map(i => i.complete && i.naturalWidth > 0)"
        found = view.page.eval_on_selector_all("img", decoded)
        assert all(found) and len(found) >= 2
        assert view.page.evaluate("document.documentElement.scrollWidth") <= size[0]
        for details in view.page.query_selector_all("summary"):
            details.click()
        results = axe.Axe().run(view.page).response
        serious = [v for v in results["violations"] if v["impact"] in SERIOUS]
        assert not serious, [(v["id"], [n["html"] for n in v["nodes"]][:3]) for v in serious]
        assert len(results["passes"]) > 10
        assert view.faults == []


def shown(view: View) -> set[str]:
    """Returns the rounds of which a picture is visible."""
    pictures = view.page.query_selector_all("[data-round]")
    return {p.get_attribute("data-round") for p in pictures if p.is_visible()}


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_the_slider_moves(size: tuple[int, int], browser: Any, pages: dict[str, Path]) -> None:
    with View(browser, pages["run"], size, "light") as view:
        slider = view.page.get_by_role("slider", name="Round")
        assert shown(view) == {"2"} and slider.get_attribute("aria-valuetext") == "round 2"
        slider.focus()
        view.page.keyboard.press("ArrowLeft")
        assert shown(view) == {"1"} and slider.get_attribute("aria-valuetext") == "round 1"
        view.page.keyboard.press("Home")
        assert shown(view) == {"0"} and view.page.inner_text("#round-said") == "round 0"
        assert view.faults == []


def test_the_axis_of_the_curves_is_chosen_by_keyboard(
    browser: Any, pages: dict[str, Path]
) -> None:
    with View(browser, pages["run"], DESKTOP, "dark") as view:

        def axes() -> set[str | None]:
            drawn = view.page.query_selector_all("[data-axis]")
            return {d.get_attribute("data-axis") for d in drawn if d.is_visible()}

        assert axes() == {"round"}
        view.page.locator("#axis-round").focus()
        for axis in ("time", "nfe"):
            view.page.keyboard.press("ArrowRight")
            assert axes() == {axis}


def test_a_point_says_its_value(browser: Any, pages: dict[str, Path]) -> None:
    with View(browser, pages["run"], DESKTOP, "light") as view:
        point = view.page.locator("[data-axis=round] circle").first
        point.hover(force=True)
        assert view.page.inner_text("#tip") == point.locator("title").text_content()


def test_without_scripts_the_last_round_is_shown(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(pages["run"].as_uri())
    pictures = page.query_selector_all("img[data-round]")
    assert {p.get_attribute("data-round") for p in pictures if p.is_visible()} == {"2"}
    assert page.locator("[data-axis=round]").first.is_visible()
    context.close()


def test_a_page_of_a_run_that_was_killed_says_that_it_is_old(
    browser: Any, pages: dict[str, Path], tmp_path: Path
) -> None:
    write_run_page(pages["run"].parent, RunStatus(State.RUNNING), out=tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    for written, old in (("1000", True), ("99999999999", False)):
        (tmp_path / "page.html").write_text(
            re.sub('data-written="[0-9]+"', f'data-written="{written}"', html)
        )
        with View(browser, tmp_path / "page.html", DESKTOP, "light") as view:
            assert view.page.locator("#old").is_visible() == old
