"""The page: what its data hold, what it shows without scripts, and what it does in a browser."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from zennit_attn import heatmap
from zennit_attn.heatmap.figure import CMAP, Paint
from zennit_attn.heatmap.ink import contrast, hexadecimal, ink_on
from zennit_attn.heatmap.page import DARK, LEVELS

HOSTILE = "</script><script>document.title='hurt'</script><b>&amp;\u2028😀 שלום\nend"
CHROMIUM = shutil.which("chromium")


def spans(pattern, text):
    return [list(match.span()) for match in re.finditer(pattern, text)]


@pytest.fixture
def data():
    text, said = f"The keys are lost. {HOSTILE}", "They are gone. Look."
    tokens, parts = [[0, 0], *spans(r"\s?\w{1,3}|\s|[^\w\s]", text)], spans(r"\s?\w+|\.", said)
    values = np.random.default_rng(0).normal(size=(len(parts), len(tokens)))
    rows = [
        {"label": "x", "span": span, "value": float(row.sum()) + 3, "relevance": row, "within": 1.0, "other": 2.0}
        for span, row in zip(parts, values, strict=True)
    ]
    units = {"token": tokens, "word": spans(r"\S+", text), "line": [[0, text.index("\n"), HOSTILE]]}
    return {
        "title": HOSTILE,
        "facts": {"model": HOSTILE},
        "prompt": {"text": text, "tokens": tokens, "labels": ["<s>"], "units": units},
        "answer": {"text": said, "tokens": parts, "units": {"token": parts, "sentence": spans(r"[^. ][^.]*\.", said)}},
        "rows": rows,
    }


def embedded(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_hostile_text_is_inert(data):
    page = heatmap.page(data)
    assert page.count("<script") == page.count("</script>") == 2
    assert "<b>" not in page
    assert "\u2028" not in re.search(r'id="data">(.*?)</script>', page)[1]
    assert embedded(page)["prompt"]["text"] == data["prompt"]["text"]


def test_no_unit_leaves_relevance_out(data):
    found = embedded(heatmap.page(data))
    for view in found["prompt"]["views"].values():
        for row, given in zip(found["rows"], data["rows"], strict=True):
            sums = np.bincount(view["owners"], row["relevance"], len(view["parts"]))
            assert sums.sum() == pytest.approx(given["relevance"].sum(), abs=1e-4)
    # white space before a word goes with its token, and what is in no line stands for itself
    text = data["prompt"]["text"].encode("utf-16-le")
    words = found["prompt"]["views"]["word"]["parts"]
    assert [text[2 * start : 2 * end].decode("utf-16-le") for start, end, _ in words[1:4]] == ["The", "keys", "are"]
    assert len(found["prompt"]["views"]["line"]["parts"]) > 2


def test_colours_without_scripts(data):
    page = heatmap.page(data)
    shown = page[page.index('id="prompt-text"') : page.index("</section>\n</main>")]
    total = np.sum([row["relevance"] for row in data["rows"]], axis=0)
    strongest = int(np.abs(total[1:]).argmax()) + 1
    found = re.findall(r"<span([^>]*)>", shown)[strongest]
    assert f'class="{"p" if total[strongest] > 0 else "n"}{LEVELS}"' in found
    assert f".p{LEVELS}{{background:{hexadecimal(tuple(Paint(CMAP)(np.ones(1), -1, 1)[0].tolist()))}" in page
    assert html.unescape(re.sub("<[^>]*>", "", shown[shown.index(">") + 1 :])).startswith("<s>The keys")


@pytest.mark.parametrize("cmap", [CMAP, DARK])
def test_text_can_be_read_on_every_colour(cmap):
    for color in Paint(cmap)(np.linspace(-1, 1, 2 * LEVELS + 1), -1, 1).tolist():
        assert contrast(ink_on(tuple(color)), tuple(color)) >= 4.5


def test_a_prompt_alone(data):
    data["prompt"].pop("units")
    found = embedded(heatmap.page({**data, "answer": None, "rows": [{**data["rows"][0], "span": None}]}))
    assert found["answer"]["views"] == {}
    assert list(found["prompt"]["views"]) == ["token"]


def test_relevance_of_images_is_the_prompts(data):
    maps = [np.full((2, 3), 1.0 + index) for index in range(len(data["rows"]))]
    for row, values in zip(data["rows"], maps, strict=True):
        row["value"] += values.sum()
    page = heatmap.page({**data, "images": [{"name": HOSTILE, "src": "data:image/png;base64,AA==", "rows": maps}]})
    assert embedded(page)["images"] == [[values.tolist() for values in maps]]
    assert "not accounted for" not in page[page.index('id="shares"') : page.index("</p>", page.index('id="shares"'))]
    assert page.count("<script") == 2


def test_what_is_not_accounted_for_is_told(data):
    data["rows"][0]["value"] += 100
    assert re.search(r'id="shares">of [^<]*not accounted for ', heatmap.page(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("rows"), "expected 'rows'"),
        (lambda data: data["answer"].pop("tokens"), "got answer with .*, expected 'tokens'"),
        (lambda data: data.update(rows=[]), "at least one"),
        (lambda data: data["rows"][0].update(relevance=[1.0]), r"shape \(1,\), expected"),
        (lambda data: data["rows"][0].update(span=[0, 999]), "span of row 0"),
        (lambda data: data["prompt"]["tokens"].reverse(), "in the order"),
        (lambda data: data["prompt"].update(labels=["a", "b"]), "2 labels"),
        (lambda data: data["prompt"]["units"].update(word=[[0, 5], [3, 8]]), "do not overlap"),
        (lambda data: data.update(images=[{"src": "http://x/y.png", "rows": []}]), "loads nothing"),
        (lambda data: data.update(images=[{"src": "data:image/png;base64,", "rows": [[[1.0]]]}]), "a map for each row"),
    ],
)
def test_shapes_that_do_not_fit(data, change, message):
    change(data)
    with pytest.raises(ValueError, match=message):
        heatmap.page(data)


DRIVER = """
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument, view = frame.contentWindow, got = {};
  const find = (id) => page.getElementById(id);
  const shades = () => [...find("prompt-text").children].map((span) => span.className).join();
  const press = (key) => page.activeElement.dispatchEvent(new view.KeyboardEvent("keydown", {key, bubbles: true}));
  const mouse = (kind, on) => on.dispatchEvent(new view.MouseEvent(kind, {bubbles: true}));
  const select = (id, value) => { find(id).value = value; find(id).dispatchEvent(new view.Event("change")); };
  try {
    const [first, second] = find("answer-text").children, whole = shades();
    got.status = find("status").textContent;
    mouse("mouseover", second); got.hover = shades() !== whole; const two = shades();
    mouse("mouseout", second); got.out = shades() === whole;
    first.focus(); press("ArrowRight"); got.arrow = shades() === two && page.activeElement === second;
    press("Enter"); got.pinned = second.ariaSelected;
    mouse("mouseover", first); got.kept = shades() === two; mouse("mouseout", first);
    select("scale", "shared"); got.shared = find("high").textContent; select("scale", "choice");
    got.own = find("high").textContent;
    press("Escape"); got.escaped = shades() === whole;
    find("prompt-text").children[1].focus(); press("ArrowRight");
    got.tip = find("tip").hidden ? "" : find("tip").textContent; got.at = page.activeElement.dataset.index;
    select("prompt-unit", "word"); got.words = find("prompt-text").children.length;
    select("answer-unit", "sentence"); got.sentences = find("answer-text").children.length;
    got.text = find("prompt-text").textContent; got.title = page.title;
    got.width = page.documentElement.scrollWidth;
  } catch (error) { got.error = String(error); }
  document.querySelector("pre").textContent = JSON.stringify(got);
};
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs the executable chromium, which drives the page")
def test_the_page_in_a_browser(data, tmp_path):
    frame = f'<iframe style="width:360px;height:900px;border:0" srcdoc="{html.escape(heatmap.page(data))}"></iframe>'
    driven = f'<!DOCTYPE html><meta charset="utf-8"><pre></pre>{frame}<script>{DRIVER}</script>'
    (tmp_path / "driven.html").write_text(driven, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "driven.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    got = json.loads(html.unescape(re.search("<pre>(.*?)</pre>", done.stdout, re.DOTALL)[1]))
    assert "error" not in got, got["error"]
    assert re.match(r"Whole answer of [+−][\d.]+: prompt .*, answer itself .*, everything else ", got["status"])
    assert all(got[name] for name in ("hover", "out", "arrow", "kept", "escaped")), got
    assert got["pinned"] == "true"
    assert float(got["shared"]) >= float(got["own"])
    assert got["tip"].startswith("relevance ")
    assert got["at"] == "2"
    found = embedded(heatmap.page(data))
    assert got["words"] == len(found["prompt"]["views"]["word"]["parts"])
    assert got["sentences"] == 2
    assert got["text"] == "<s>" + data["prompt"]["text"]
    assert got["title"] == data["title"].replace("\n", " ")
    assert got["width"] <= 360
