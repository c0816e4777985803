"""The report in a real browser: nothing refused, every plot drawn, light and dark, wide and narrow."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import sweep_records

from ftray.artifacts import RunDirectory
from ftray.campaign import SweepDirectory
from ftray.report.sweep_render import render_sweep

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
    "--v=0",
)  # fmt: skip
MEASURE = """\
<iframe id="page" src="{page}" style="width: {width}px; height: 800px; border: 0"></iframe><pre id="measured"></pre>
<script>
onload = () => {{
  const page = document.getElementById("page").contentDocument;
  const wide = [...page.querySelectorAll("main *")].filter(
    one => !one.closest(".scroll, .beside, svg") && one.getBoundingClientRect().right > {width});
  const thin = [...page.querySelectorAll("td, th, p, li")].filter(
    one => one.checkVisibility() && one.textContent.trim().length > 3 && one.getBoundingClientRect().width < 24);
  document.getElementById("measured").textContent =
    `${{page.querySelectorAll("section").length}} sections, ${{wide.length}} too wide, ${{thin.length}} too thin`;
}};
</script>
"""


@pytest.fixture
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is installed")
    return found


def browse(browser: str, profile: Path, *flags: str) -> str:
    """Return what the browser prints; fail on anything the page's console says."""
    command = [browser, *QUIET, f"--user-data-dir={profile}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr  # nothing was refused by the page's own policy, nothing failed to load
    return done.stdout


class Figures(HTMLParser):
    """The view box and the paths of every figure of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.boxes: list[list[float]] = []
        self.paths: list[int] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "figure":
            self.boxes.append([])
            self.paths.append(0)
        elif tag == "svg":
            self.boxes[-1] = [float(number) for number in (given["viewbox"] or "").split()]
        elif tag == "path" and self.paths and (given.get("d") or "").strip():
            self.paths[-1] += 1


def test_every_figure_of_a_real_run_is_drawn(real_run: RunDirectory, browser: str, tmp_path: Path) -> None:
    dumped = browse(browser, tmp_path / "profile", "--dump-dom", real_run.report.as_uri())
    figures = Figures(dumped)
    assert len(figures.boxes) == real_run.report.read_text(encoding="utf-8").count("<figure>") >= 6
    for box, paths in zip(figures.boxes, figures.paths, strict=True):
        assert len(box) == 4
        assert min(box[2:]) > 50
        assert paths >= 5


def test_a_browser_shows_it_in_light_and_dark(real_run: RunDirectory, browser: str, tmp_path: Path) -> None:
    from PIL import Image

    corners = []
    for scheme in ("1", "0"):
        shot = tmp_path / f"{scheme}.png"
        flags = (f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}", "--window-size=1200,2000")
        browse(browser, tmp_path / "profile", *flags, real_run.report.as_uri())
        with Image.open(shot) as image:
            assert len(image.convert("RGB").getcolors(maxcolors=1 << 22) or []) > 50
            corners.append(image.convert("L").getpixel((5, 5)))
    assert corners[0] > 200 > 60 > corners[1]


@pytest.fixture(scope="session")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> SweepDirectory:
    sweep = sweep_records.write(tmp_path_factory.mktemp("campaign") / "sweep", sweep_records.finished())
    render_sweep(sweep)
    return sweep


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("of", ["real_run", "campaign"])
def test_nothing_is_cut_off_or_squeezed(
    of: str, request: pytest.FixtureRequest, browser: str, tmp_path: Path, width: int
) -> None:
    report: Path = request.getfixturevalue(of).report
    frame = tmp_path / "frame.html"
    frame.write_text(MEASURE.format(page=report.as_uri(), width=width), encoding="utf-8")
    # The frame has to look into a page of another file.
    flags = ("--disable-web-security", "--allow-file-access-from-files", "--dump-dom")
    dumped = browse(browser, tmp_path / "profile", *flags, frame.as_uri())
    sections = report.read_text(encoding="utf-8").count("<section")
    assert f"{sections} sections, 0 too wide, 0 too thin" in dumped.split('id="measured"')[1]


def test_every_figure_of_a_campaign_is_drawn_in_light_and_dark(
    campaign: SweepDirectory, browser: str, tmp_path: Path
) -> None:
    from PIL import Image

    figures = Figures(browse(browser, tmp_path / "profile", "--dump-dom", campaign.report.as_uri()))
    assert len(figures.boxes) == 6
    assert min(figures.paths) >= 5
    corners = []
    for scheme in ("1", "0"):
        shot = tmp_path / f"{scheme}.png"
        flags = (f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}", "--window-size=1200,2000")
        browse(browser, tmp_path / "profile", *flags, campaign.report.as_uri())
        with Image.open(shot) as image:
            corners.append(image.convert("L").getpixel((5, 5)))
    assert corners[0] > 200 > 60 > corners[1]
