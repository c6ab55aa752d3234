"""The page of latents in a real browser: sorted, searched, drawn on demand, quiet, alone on the network, readable."""

import base64
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import pages
from pages import contrast, keep, luminance, wait_for

from ellzero.autoencoder import SAETrainer, SparseAutoencoder
from ellzero.autoencoder.browse import browse
from ellzero.models import ActivationStream, reference_language_model, reference_texts

pytestmark = pages.NEEDED
WILD = "<b>bold</b> </script><script>document.title = 'broken'</script> & so on\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained autoencoder of the language model that ships, on its held-out texts and one full of markup."""
    folder = tmp_path_factory.mktemp("latents")
    model, tokenizer = reference_language_model()
    texts = [WILD * 4, *reference_texts("validation")[:6]]
    rows = ActivationStream(model, hook="layers.2", texts=texts, tokenizer=tokenizer).collect()
    sae = SparseAutoencoder.from_preset("topk", d_in=128, d_sae=300, k=8)
    SAETrainer(sae, lr=0.005, batch_size=512, steps=40).fit(rows)
    browse(sae, model, "layers.2", texts, tokenizer, folder / "latents.html", title="Latents of <layers.2>")
    return folder


@pytest.fixture(scope="module")
def data(folder):
    page = (folder / "latents.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    kinds = {"fires": "<i4", "largest": "<f4", "tokens": "<i4", "values": "i1", "start": "<i4", "length": "u1",
             "first": "<i4"}  # fmt: skip
    return data | {key: np.frombuffer(base64.b64decode(data[key]), kind) for key, kind in kinds.items()}


@pytest.fixture(scope="module")
def address(folder):
    with pages.served(folder) as root:
        yield f"{root}/latents.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with pages.chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def show(browser, address, **options):
    browser.get("about:blank")
    pages.load(browser, address, **options)
    wait_for(browser, "return document.documentElement.dataset.drawn", "yes")


def listed(browser):
    return browser.execute_script("return [...document.querySelectorAll('#list tr')].map(r => +r.dataset.latent)")


def change(browser, name, value, event="change"):
    browser.execute_script(
        "const e = document.getElementById(arguments[0]);"
        "if (e.type === 'checkbox') e.checked = arguments[1]; else e.value = arguments[1];"
        "e.dispatchEvent(new Event(arguments[2]));", name, value, event,
    )  # fmt: skip


def test_it_is_drawn_quietly_and_nothing_is_fetched(browser, address, folder):
    show(browser, address)
    keep(browser, folder, "desktop.png")
    assert pages.complaints(browser) == []
    assert pages.fetched(browser, address) == {address}
    assert browser.title == "Latents of <layers.2>"
    facts = browser.execute_script("return document.querySelector('dl').innerText")
    for words in ("of the cross-entropy recovered", "active latents per token", "are active on no token"):
        assert words in facts


def test_latents_are_sorted_by_each_key(browser, address, data):
    show(browser, address)
    alive = np.flatnonzero(data["fires"])
    for key, values in (("density", data["fires"]), ("largest", data["largest"]), ("number", np.arange(300))):
        for rising in (False, True):
            change(browser, "sort", key)
            change(browser, "rising", rising)
            sign = 1 if rising else -1
            assert listed(browser) == sorted(alive, key=lambda i, v=values, s=sign: (s * float(v[i]), i))[:50]
    change(browser, "dead", True)
    assert "300 latents, page 1 of 6" in browser.execute_script("return document.getElementById('where').textContent")
    for _ in range(5):
        browser.execute_script("document.getElementById('on').click()")
    assert listed(browser) == list(range(250, 300))
    assert browser.execute_script("return document.getElementById('on').disabled")


def test_a_latent_is_drawn_with_its_examples(browser, address, data):
    show(browser, address)
    latent = int(np.argmax(data["fires"]))
    assert browser.execute_script("return +document.getElementById('detail').dataset.latent") == latent
    other = listed(browser)[7]
    browser.execute_script("document.querySelectorAll('#list button')[7].click()")
    wait_for(browser, "return +document.getElementById('detail').dataset.latent", other)
    assert browser.execute_script("return location.hash") == f"#latent={other}"
    lines = browser.execute_script(
        "return [...document.querySelectorAll('#detail .example')].map(e => "
        "[e.textContent, e.querySelectorAll('span[style]').length, e.querySelector('.peak').title])"
    )
    first, last = data["first"][other : other + 2]
    assert len(lines) == last - first
    for (text, coloured, peak), e in zip(lines, range(first, last)):
        low, n = data["start"][e], data["length"][e]
        words = [data["words"][t] for t in data["tokens"][low : low + n]]
        assert text == "".join(words).replace("\n", "↵").replace("\t", "⇥")
        before = int(data["length"][:e].astype(int).sum())
        values = data["values"][before : before + int(n)].astype(float)
        assert coloured == np.count_nonzero(values)
        assert float(peak) == pytest.approx(abs(values).max() / 127 * data["largest"][other], rel=0.01)
    bars = browser.execute_script("return document.querySelectorAll('#detail svg rect').length")
    assert bars == data["bins"]
    assert browser.execute_script("return document.querySelectorAll('#detail .words li').length") == 16


def test_words_are_found_and_markup_stays_text(browser, address, data):
    show(browser, address)
    latent, texts, peaks = [], [], []
    offset = np.concatenate([[0], np.cumsum(data["length"], dtype=int)])
    for i in range(len(data["fires"])):
        for e in range(*data["first"][i : i + 2]):
            words = [data["words"][t] for t in data["tokens"][data["start"][e] :][: data["length"][e]]]
            latent.append(i)
            texts.append("".join(words))
            peaks.append(words[int(abs(data["values"][offset[e] : offset[e + 1]].astype(int)).argmax())])
    for wanted in ("<", peaks[0].strip()):
        change(browser, "word", wanted, "input")
        found = {i for i, word in zip(latent, peaks) if wanted.lower() in word.lower()}
        assert found
        assert set(listed(browser)) == found if len(found) <= 50 else set(listed(browser)) <= found
    e = next(e for e, text in enumerate(texts) if "</script><script>" in text)
    browser.execute_script("location.hash = arguments[0]", f"latent={latent[e]}")
    wait_for(browser, "return +document.getElementById('detail').dataset.latent", latent[e])
    shown = browser.execute_script("return [...document.querySelectorAll('.example')].map(e => e.textContent)")
    assert any("</script><script>" in text for text in shown)
    assert browser.title == "Latents of <layers.2>"
    assert browser.execute_script("return document.querySelectorAll('main b, main script').length") == 0
    change(browser, "word", "no such word", "input")
    assert listed(browser) == []


def test_an_address_leads_to_its_latent(browser, address, data):
    dead = np.flatnonzero(data["fires"] == 0)
    latent = int(dead[0]) if len(dead) else 17
    show(browser, f"{address}#latent={latent}")
    assert browser.execute_script("return document.querySelector('#detail h2').textContent") == f"Latent {latent}"
    if len(dead):
        assert "Active on no token" in browser.execute_script("return document.getElementById('detail').textContent")
    change(browser, "number", "299")
    wait_for(browser, "return document.querySelector('#detail h2').textContent", "Latent 299")
    assert pages.complaints(browser) == []


def test_the_page_fits_a_phone(browser, address, folder):
    show(browser, address, width=390, height=844)
    keep(browser, folder, "phone.png")
    assert browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(browser, address, folder, scheme):
    show(browser, address, scheme=scheme)
    keep(browser, folder, f"{scheme}.png")
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    page = browser.execute_script(style, "body", "backgroundColor")
    assert (luminance(page) < 0.05) == (scheme == "dark")
    for selector in ("h1", "dt", "dd", "#list td", "#list button", ".example", ".soft"):
        assert contrast(browser.execute_script(style, selector, "color"), page) >= 4.5, selector
    # the hottest token: its colour over the page, painted to be read
    hottest = browser.execute_script(
        "const c = document.createElement('canvas').getContext('2d');"
        "const e = document.querySelector('.example .peak');"
        "for (const colour of [arguments[0], getComputedStyle(e).backgroundColor]) {"
        "  c.fillStyle = colour; c.fillRect(0, 0, 1, 1); }"
        "return `rgb(${[...c.getImageData(0, 0, 1, 1).data].slice(0, 3).join(',')})`;", page,
    )  # fmt: skip
    assert contrast(hottest, page) > 1.3
    assert contrast(browser.execute_script(style, ".example .peak", "color"), hottest) >= 4.5
