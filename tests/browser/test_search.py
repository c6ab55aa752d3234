"""The search page in a real browser: hits with reasons, keys, history, markup kept as text, quiet, alone, readable."""

import json
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import pages
from pages import contrast, keep, wait_for

from ellzero.retrieval import BM25Vectorizer, ImpactIndex, Words
from ellzero.retrieval.service import SearchService, Texts
from ellzero.retrieval.web import SearchServer

pytestmark = pages.NEEDED
WILD = (
    "<img src=x onerror=\"document.title='broken'\"> </script><script>document.title = 'broken'</script> wings & more"
)
COUNT = "return document.querySelectorAll('#hits > li').length"
STATE = "return document.getElementById('state').textContent"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    words = ["wings", "lift", "slipstream", "heat", "composite", "slabs", "pressure", "shear", "laminar", "boundary",
             "layer", "flow"]  # fmt: skip
    texts = {"wild": WILD} | {
        f"d{i}": " ".join(words[(i + j * j) % len(words)] for j in range(3 + i % 9)) + " " + " ".join(words[: i // 5])
        for i in range(60)
    }
    with open(folder / "c.jsonl", "w") as file:
        for name, text in texts.items():
            title = f"Paper {name}" if name != "d7" else ""
            file.write(json.dumps({"_id": name, "title": title, "text": text}) + "\n")
    model = BM25Vectorizer(tokenizer=Words(stemmer=None))
    index = ImpactIndex.build(model.fit_transform(texts.values()), list(texts), vocabulary=model.vocabulary)
    service = SearchService(index, model.encode_query, texts=Texts(folder / "c.jsonl"), name="<i>papers</i>")
    with SearchServer(service, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with pages.chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def test_a_search_shows_hits_and_why(server, browser, tmp_path):
    from selenium.webdriver.common.keys import Keys

    pages.load(browser, server.address)
    assert browser.execute_script("return document.querySelector('h1').textContent") == "<i>papers</i>"
    box = browser.switch_to.active_element  # the field has the focus from the start
    assert box.get_attribute("id") == "q"
    box.send_keys("laminar boundary flow wings pressure heat shear", Keys.ENTER)
    wait_for(browser, COUNT, 10)
    answer = server.service.answer("laminar boundary flow wings pressure heat shear", 10)
    shown = browser.execute_script(
        "return [...document.querySelectorAll('#hits > li')].map(hit => ({title: hit.querySelector('h2').textContent,"
        "terms: [...hit.querySelectorAll('th')].map(cell => cell.textContent),"
        "bars: [...hit.querySelectorAll('td div')].map(bar => parseFloat(bar.style.width)),"
        "folded: !!hit.querySelector('details')}))"
    )
    for row, hit in zip(shown, answer["hits"], strict=True):
        assert row["title"] == f"{hit['rank']}. {hit['title'] or hit['id']}"
        assert row["terms"] == [term["term"] for term in hit["terms"]]
        shares = [100 * term["score"] / hit["terms"][0]["score"] for term in hit["terms"]]
        assert row["bars"] == pytest.approx(shares, abs=0.01)
        assert row["folded"] == (len(hit["terms"]) > 5)
    assert any(row["folded"] for row in shown)
    terms = browser.execute_script("return [...document.querySelectorAll('#terms li')].map(li => li.firstChild.data)")
    assert terms == [term["term"] for term in answer["terms"]]
    assert "10 best documents" in browser.execute_script(STATE)
    keep(browser, tmp_path, "search.png")
    browser.execute_script("document.getElementById('more').click()")
    wait_for(browser, COUNT, 30)
    assert pages.complaints(browser) == []
    base = server.address
    asked = pages.fetched(browser, base)
    assert asked
    assert all(url.startswith(base) for url in asked)


def test_addresses_go_back_and_forth(server, browser):
    pages.load(browser, server.address + "?q=slabs")
    wait_for(browser, "return document.querySelectorAll('#hits > li').length > 0", True)
    browser.execute_script(
        "document.getElementById('q').value = 'unheard'; document.getElementById('ask').requestSubmit()"
    )
    wait_for(browser, "return document.getElementById('state').textContent.startsWith('nothing matches')", True)
    assert browser.execute_script(COUNT) == 0
    assert browser.current_url.endswith("?q=unheard")
    browser.back()
    wait_for(browser, "return document.querySelectorAll('#hits > li').length > 0", True)
    assert browser.execute_script("return document.getElementById('q').value") == "slabs"
    assert pages.complaints(browser) == []


def test_markup_in_documents_stays_text(server, browser):
    pages.load(browser, server.address + "?q=onerror")
    wait_for(browser, COUNT, 1)
    assert browser.execute_script("return document.querySelector('.text').textContent") == WILD
    assert browser.execute_script("return document.querySelectorAll('#hits img, #hits script').length") == 0
    assert "broken" not in browser.title
    assert pages.complaints(browser) == []


def test_a_mistake_and_a_service_that_went_away_are_told(server, browser):
    pages.load(browser, server.address)
    browser.execute_script("document.getElementById('q').removeAttribute('maxlength')")
    browser.execute_script("document.getElementById('q').value = 'a'.repeat(600);"
                           "document.getElementById('ask').requestSubmit()")  # fmt: skip
    wait_for(browser, "return document.getElementById('state').className", "wrong")
    assert "at most 500" in browser.execute_script(STATE)
    browser.execute_script("window.fetch = () => Promise.reject(new TypeError('away'));"
                           "document.getElementById('q').value = 'slabs';"
                           "document.getElementById('ask').requestSubmit()")  # fmt: skip
    wait_for(browser, STATE, "the service does not answer")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_it_is_readable_on_a_phone_and_in_the_dark(server, browser, width, scheme):
    pages.load(browser, server.address + "?q=laminar+boundary+flow+wings+pressure+heat", width=width, scheme=scheme)
    wait_for(browser, COUNT, 10)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    pairs = browser.execute_script(
        "const style = (q) => getComputedStyle(document.querySelector(q));"
        "return [[style('.text').color, style('#hits > li').backgroundColor],"
        "[style('caption').color, style('#hits > li').backgroundColor],"
        "[style('#state').color, style('body').backgroundColor], "
        "[style('button').color, style('button').backgroundColor]]"
    )
    assert all(contrast(*pair) >= 4.5 for pair in pairs), pairs
