"""The report in a real browser: drawn, quiet, alone on the network, readable on a phone and in the dark."""

import sys
from pathlib import Path

import pytest

from ellzero.compare import compare

sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))
sys.path.insert(0, str(Path(__file__).parent))
import pages
from pages import contrast, keep, luminance, wait_for
from small_task import Diabetes, Largest

pytestmark = pages.NEEDED


class Unlucky(Largest):
    """Fails at one budget, with words that are markup."""

    def frontier(self, data, budgets, seed):
        for k in budgets:
            if k == 5:
                raise ValueError("<script>alert('no')</script> & so on")
            yield from super().frontier(data, [k], seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    methods = ["least_squares", "largest", "at_random", Unlucky(name="</script><b>unlucky", alpha=3.0)]
    compare(Diabetes(), methods, [0.5 + 0.5, 2, 3, 5, 10], seeds=3, trials=3, out=folder / "run").report()
    return folder / "run"


@pytest.fixture(scope="module")
def address(folder):
    with pages.served(folder) as root:
        yield f"{root}/report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with pages.chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def show(browser, address, **options):
    """Load the page at a size and in a scheme; wait until it is drawn."""
    scheme = options.get("scheme", "light")
    pages.load(browser, address, **options)
    wait_for(browser, "return document.documentElement.dataset.drawn", scheme)
    wait_for(browser, "return document.querySelectorAll('.plot .scatterlayer .trace').length > 8", True)


def test_the_plots_are_drawn_quietly_and_nothing_is_fetched(browser, address, folder):
    show(browser, address)
    keep(browser, folder, "desktop.png")
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].map(p => [p.id,"
        " p.querySelectorAll('.scatterlayer .trace').length, p.querySelectorAll('.scatterlayer .point').length])"
    )
    # three sparse methods, the dense line and the rings; then all four methods, twice
    assert [(name, traces) for name, traces, _ in drawn] == [("frontier", 5), ("time", 4), ("size", 4)]
    assert drawn[0][2] >= 14
    assert drawn[1][2] == drawn[2][2] == 5 + 5 + 4 + 1
    assert browser.execute_script("return document.querySelectorAll('#frontier .errorbar').length") > 0
    assert browser.execute_script("return document.querySelectorAll('#frontier .shapelayer path').length") == 1
    buttons = browser.execute_script(
        "return [...document.querySelectorAll('#frontier .modebar-btn')].map(b => b.dataset.title)"
    )
    assert len(buttons) == 4, buttons  # none that would send anything anywhere
    assert pages.complaints(browser) == []
    assert pages.fetched(browser, address) == {address}


def test_names_and_messages_stay_text(browser, address):
    show(browser, address)
    assert browser.execute_script("return document.querySelector('tbody b')") is None
    text = browser.execute_script("return document.querySelector('main').innerText")
    assert "</script><b>unlucky" in text
    assert "<script>alert('no')</script> & so on" in text
    assert "3 fits failed" not in text
    assert "9 fits failed" in text


def test_hovering_tells_the_point(browser, address):
    show(browser, address)
    text = browser.execute_script(
        "Plotly.Fx.hover('frontier', [{curveNumber: 0, pointNumber: 1}]);"
        "return document.querySelector('#frontier .hoverlayer').textContent"
    )
    assert "largest" in text
    assert "coefficients (asked 2)" in text


def test_the_page_fits_a_phone(browser, address, folder):
    show(browser, address, width=390, height=844)
    keep(browser, folder, "phone.png")
    width = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width == [390, 390]
    wide = browser.execute_script(
        "return [...document.querySelectorAll('main > *:not(.scroll)')]"
        ".filter(e => e.getBoundingClientRect().right > 390.5).map(e => e.tagName)"
    )
    assert wide == []
    assert browser.execute_script("return parseFloat(getComputedStyle(document.body).fontSize)") >= 16


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_in_both_schemes(browser, address, folder, scheme):
    show(browser, address, scheme=scheme)
    keep(browser, folder, f"{scheme}.png")
    page = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(page) < 0.05) == (scheme == "dark")
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    for selector in ("h1", "caption", "figcaption", "td", "dt"):
        assert contrast(browser.execute_script(style, selector, "color"), page) >= 4.5, selector
    for tick in ("#frontier .xtick text", "#time .ytick text"):
        assert contrast(browser.execute_script(style, tick, "fill"), page) >= 4.5, tick
    lines = browser.execute_script(
        "return [...document.querySelectorAll('.js-line')].map(e => getComputedStyle(e).stroke)"
    )
    assert len(lines) >= 4
    assert min(contrast(colour, page) for colour in lines) >= 3


def test_the_plots_follow_the_scheme_without_a_reload(browser, address):
    show(browser, address)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    wait_for(browser, "return document.documentElement.dataset.drawn", "dark")
    ink = browser.execute_script("return getComputedStyle(document.querySelector('#size .xtick text')).fill")
    assert luminance(ink) > 0.5
