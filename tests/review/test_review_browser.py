"""The page in a real browser: the Chromium of the system, driven by keys alone."""

from __future__ import annotations

import json
import re
import statistics

import numpy as np
import pytest

from tests.browsers import ARGUMENTS, FAINT, chromium
from tests.record_cases import fingerprint
from tests.review import desk_cases as cases
from verifix.cli.commands.review import _about
from verifix.cli.main import parse
from verifix.io.data.records import Header
from verifix.io.data.verified import read_decisions
from verifix.selection.queue import Entry, Queue, write_queue

pytestmark = pytest.mark.browser

MEASURE = """
    window.delays = [];
    addEventListener('keydown', event => { window.pressed = event.timeStamp; }, true);
    addEventListener('DOMContentLoaded', () => document.getElementById('stage') && new MutationObserver(() => {
        const pressed = window.pressed, image = document.querySelector('#stage img');
        if (!pressed || !image || !image.complete) return;
        window.pressed = 0;
        requestAnimationFrame(() => setTimeout(() => window.delays.push(performance.now() - pressed)));
    }).observe(document.getElementById('stage'), {attributes: true, attributeFilter: ['data-place']}));
"""
"""Notes how long it takes from a key to the frame in which the next image is painted."""


@pytest.fixture(scope="module")
def engine():
    from playwright.sync_api import sync_playwright

    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(engine):
    """Open the page as somebody, and note everything that it says or asks for."""
    contexts = []

    def go(server, name: str | None = "Ada", width: int = 1280, **settings):
        context = engine.new_context(viewport={"width": width, "height": 844}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.noted = []
        page.on("console", lambda message: page.noted.append(("console", message.text)))
        page.on("pageerror", lambda error: page.noted.append(("error", str(error))))
        page.on("dialog", lambda dialog: page.noted.append(("dialog", dialog.message)))
        page.on("request", lambda request: page.noted.append(("request", request.url)))
        page.add_init_script(MEASURE)
        page.goto(server.address)
        page.wait_for_selector("#name")
        if name is not None:
            page.keyboard.type(name)
            page.keyboard.press("Enter")
            page.wait_for_selector("#stage[data-place='0'], #done:not([hidden])")
        return page

    yield go
    for context in contexts:
        context.close()


def strange(page, server) -> list[tuple[str, str]]:
    """What the page said, and what it asked for elsewhere."""
    own = f"http://127.0.0.1:{server.port}/"
    return [(kind, what) for kind, what in page.noted if kind != "request" or not what.startswith(own)]


def saved(page, path, count: int) -> list[dict]:
    """The records, once there are so many."""
    cases.wait_for(lambda: "saving" not in page.inner_text("#far"))
    return cases.wait_for(lambda: len(found := cases.records(path)) >= count and found)


def press(page, key: str, place: int | None) -> None:
    """Press a key, and wait until the sample that comes then is on the screen."""
    page.keyboard.press(key)
    page.wait_for_selector("#done:not([hidden])" if place is None else f"#stage[data-place='{place}']")


def test_two_hundred_images_by_keys_alone(tmp_path, visit, often):
    count = max(often(200), 40)
    queue = cases.make_queue(tmp_path, count, drawn=count // 2)
    wanted = []
    with cases.served(tmp_path) as server:
        page = visit(server)
        for place, entry in enumerate(queue.entries):
            turn, other = place % 10, (entry.label + 1 + place % 3) % 4
            key = {3: str(other), 4: "u", 6: str(entry.label), 7: "s", 8: "Enter"}.get(turn, "k")
            if key == "Enter":
                page.keyboard.press("/")
                page.keyboard.type(cases.CLASSES[other][:2].upper())
            following = place + 1 if place < count - 1 else None
            press(page, key, following)
            label = {"u": None, "s": None, str(other): other, "Enter": other}.get(key, entry.label)
            status = {"u": "unsure", "s": "skip"}.get(key, "ok" if label == entry.label else "relabel")
            wanted.append((entry.id, None if label is None else cases.CLASSES[label], status))
            if place % 25 == 24:  # taken back, and decided again
                press(page, "z", place)
                press(page, key, following)
                wanted += [(entry.id, None, "undo"), wanted[-1]]
        records = saved(page, tmp_path / "verified.jsonl", len(wanted))
        assert f"{count} of {count} decided" in page.inner_text("#far")
        delays = page.evaluate("window.delays")
        assert strange(page, server) == []
    assert [(r["id"], r["verified"], r["status"]) for r in records] == wanted
    assert {r["annotator"] for r in records} == {"Ada"}
    assert len(delays) >= count
    assert statistics.median(delays) < 50, sorted(delays)


def test_a_whole_class_at_once(tmp_path, visit):
    queue = cases.make_queue(tmp_path, 40)
    with cases.served(tmp_path) as server:
        page = visit(server)
        page.keyboard.press("g")
        page.wait_for_selector("#cells button")
        page.keyboard.press("]")  # the second class
        places = [place for place, entry in enumerate(queue.entries) if entry.label == 1]
        assert page.evaluate("[...document.querySelectorAll('#cells button')].map(e => +e.dataset.place)") == places
        for key in ("ArrowRight", "x", "ArrowRight", "x", "x", "End", "ArrowRight", "x"):
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        odd = [places[1], places[3]]
        page.wait_for_selector(f"#stage[data-place='{odd[0]}']")
        press(page, "3", odd[1])
        press(page, "0", places_left(queue, 1)[0])
        records = saved(page, tmp_path / "verified.jsonl", 10)
        kept = [(queue.entries[place].id, "bee", "ok") for place in places if place not in odd]
        turned = [(queue.entries[odd[0]].id, "dog", "relabel"), (queue.entries[odd[1]].id, "ant", "relabel")]
        assert [(r["id"], r["verified"], r["status"]) for r in records] == kept + turned
        page.keyboard.press("z")
        page.keyboard.press("z")
        page.keyboard.press("z")  # the whole page of the grid
        records = saved(page, tmp_path / "verified.jsonl", 20)
        assert page.inner_text("#far").startswith("0 of 40")
        assert read_decisions(tmp_path / "verified.jsonl").labels == {}
        assert strange(page, server) == []


def places_left(queue, label: int) -> list[int]:
    return [place for place, entry in enumerate(queue.entries) if entry.label != label]


def test_two_people_and_their_disagreements(tmp_path, visit):
    queue = cases.make_queue(tmp_path, 8)
    first, second = queue.entries[:2]
    with cases.served(tmp_path) as server:
        ada = visit(server)
        for place, key in enumerate("kkk"):
            press(ada, key, place + 1)
        saved(ada, tmp_path / "verified.jsonl", 3)
        bob = visit(server, "Bob")
        for place, key in enumerate((str((first.label + 1) % 4), str((second.label + 1) % 4), "k")):
            press(bob, key, place + 1)
        saved(bob, tmp_path / "verified.jsonl", 6)
        cases.wait_for(lambda: bob.inner_text("#disputes") == "2")
        assert "Ada and Bob: 1 of 3 labels equal, Cohen's kappa" in bob.inner_text("#agreement")
        bob.keyboard.press("d")
        bob.wait_for_selector("#votes:not([hidden])")
        name = cases.CLASSES[first.label]
        assert bob.inner_text("#votes") == f"Ada: {name}; Bob: {cases.CLASSES[(first.label + 1) % 4]}"
        press(bob, "k", 1)
        press(bob, str((second.label + 2) % 4), None)
        saved(bob, tmp_path / "verified.jsonl", 8)
        bob.reload()
        bob.wait_for_selector("#stage[data-place='3']")
        bob.keyboard.press("z")  # the last resolution, although the page was loaded again
        bob.wait_for_selector("#stage[data-place='1']")
        assert bob.get_attribute("#to-disputes", "aria-pressed") == "true"
        assert bob.inner_text("#votes").startswith("Ada: ")
        press(bob, str((second.label + 2) % 4), None)
        saved(bob, tmp_path / "verified.jsonl", 10)
        ada.reload()
        ada.wait_for_selector("#stage[data-place='3']")
        assert ada.inner_text("#far").startswith("3 of 8 decided")
        assert ada.inner_text("#disputes") == "0"
        assert strange(ada, server) == strange(bob, server) == []
    labels = read_decisions(tmp_path / "verified.jsonl").labels
    assert labels[first.id] == name
    assert labels[second.id] == cases.CLASSES[(second.label + 2) % 4]


def test_only_what_nobody_has_decided(tmp_path, visit):
    queue = cases.make_queue(tmp_path, 8)
    with cases.served(tmp_path) as server:
        server.connect().decide((0, "ok", queue.entries[0].label), (2, "skip", None))
        page = visit(server, None)
        page.keyboard.type("Bob")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        page.keyboard.press("Enter")
        page.wait_for_selector("#stage[data-place='1']")
        press(page, "k", 3)


def test_a_phone_by_touch(tmp_path, visit):
    queue = cases.make_queue(tmp_path, 12)
    with cases.served(tmp_path) as server:
        page = visit(server, width=390, has_touch=True, is_mobile=True)
        wide = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]")
        assert max(wide[:2]) <= wide[2] == 390
        page.tap("text=Keep >> nth=0")
        page.wait_for_selector("#stage[data-place='1']")
        page.tap(f"#classes button[data-class='{(queue.entries[1].label + 1) % 4}']")
        page.wait_for_selector("#stage[data-place='2']")
        page.tap("#single button[data-key='z']")
        page.wait_for_selector("#stage[data-place='1']")
        page.tap("#single button[data-key='u']")
        small = """[...document.querySelectorAll('button, input, select')].filter(e => e.offsetParent).map(e => [
            e.id || e.textContent, e.getBoundingClientRect()]).filter(([, box]) => box.height < 44 || box.width < 44)"""
        assert page.evaluate(small) == []
        page.wait_for_selector("#stage[data-place='2']")
        seen = (
            "(e => [e.top > -1, e.bottom < innerHeight + 1])(document.getElementById('stage').getBoundingClientRect())"
        )
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        assert page.evaluate(seen) != [True, True]
        page.evaluate("document.querySelector('#classes button').click()")
        page.wait_for_selector("#stage[data-place='3']")
        assert page.evaluate(seen) == [True, True]  # the next sample is seen, wherever the button was
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.evaluate("document.getElementById('to-grid').click()")
        page.wait_for_selector("#cells button")
        assert page.evaluate(small) == []
        assert page.evaluate("document.getElementById('grid-title').getBoundingClientRect().top") >= 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.tap("#cells button >> nth=1")
        assert page.get_attribute("#cells button >> nth=1", "aria-pressed") == "true"
        records = saved(page, tmp_path / "verified.jsonl", 5)
        assert [r["status"] for r in records[:4]] == ["ok", "relabel", "undo", "unsure"]
        page.evaluate("document.getElementById('other-name').click()")
        page.wait_for_selector("#name")  # somebody else on the same phone
        page.fill("#name", "Bob")
        page.press("#name", "Enter")
        page.wait_for_selector("#stage[data-place='0']")
        assert page.inner_text("#me") == "Bob"
        assert strange(page, server) == []


def test_what_a_screen_reader_hears_and_a_keyboard_sees(tmp_path, visit):
    cases.make_queue(tmp_path, 8)
    with cases.served(tmp_path) as server:
        page = visit(server)
        assert page.evaluate("document.activeElement.id") == "stage"
        heard = page.inner_text("#spoken")
        assert heard.startswith("Sample 1 of 8")
        assert "Given label" in heard
        assert "The model says" in heard
        nameless = """[...document.querySelectorAll('button, input, select, meter, progress, img')].filter(e =>
            !(e.ariaLabel || e.getAttribute('aria-label') || e.alt || e.labels?.length || e.textContent.trim()))
            .map(e => e.outerHTML)"""
        assert page.evaluate(nameless) == []
        for _ in range(12):
            page.keyboard.press("Tab")
            style = page.evaluate(
                "(s => [s.outlineStyle, parseFloat(s.outlineWidth)])(getComputedStyle(document.activeElement))"
            )
            assert style[0] == "solid"
            assert style[1] >= 2
        page.keyboard.press("?")
        page.wait_for_selector("#help[open]")
        page.keyboard.press("k")  # keys do nothing behind the dialog
        page.keyboard.press("Escape")
        page.evaluate("document.getElementById('keys-on').click()")
        page.keyboard.press("k")  # nor if they are switched off
        page.click("text=Keep >> nth=0")
        assert len(saved(page, tmp_path / "verified.jsonl", 1)) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(tmp_path, visit, scheme):
    cases.make_queue(tmp_path, 8)
    with cases.served(tmp_path) as server:
        page = visit(server, color_scheme=scheme)
        assert page.evaluate(FAINT) == []
        page.keyboard.press("g")
        page.wait_for_selector("#cells button")
        assert page.evaluate(FAINT) == []


def test_zoom_and_pictures_of_the_classes(tmp_path, visit):
    cases.make_queue(tmp_path, 40)
    with cases.served(tmp_path) as server:
        page = visit(server)
        width = "document.querySelector('#stage img').getBoundingClientRect().width"
        fit = page.evaluate(width)
        page.keyboard.press("+")
        page.keyboard.press("+")
        assert page.evaluate(width) == pytest.approx(2 * fit, rel=0.02)
        page.keyboard.press("f")
        assert page.evaluate(width) == pytest.approx(fit, rel=0.02)
        cases.wait_for(
            lambda: page.evaluate("[...document.querySelectorAll('#examples img')].some(e => e.naturalWidth)")
        )
        page.keyboard.press("c")
        assert not page.is_visible("#reminder")


def test_a_server_that_is_gone_is_told_and_nothing_is_lost(tmp_path, visit):
    cases.make_queue(tmp_path, 8)
    with cases.served(tmp_path) as server:
        page = visit(server)
        page.route("**/decide", lambda route: route.abort())
        press(page, "k", 1)
        page.wait_for_selector("#trouble:not([hidden])")
        assert page.inner_text("#trouble-text").startswith("1 decision is not saved yet")
        press(page, "k", 2)
        page.unroute("**/decide")
        page.click("#retry")
        page.wait_for_selector("#trouble[hidden]", state="attached")
        assert [r["status"] for r in saved(page, tmp_path / "verified.jsonl", 2)] == ["ok", "ok"]


HOSTILE = ('<img src=x onerror="document.title=1">', "</script><script>document.title=1</script>", "a\u202eb", "né")


def test_texts_with_hostile_words_and_many_classes(tmp_path, visit):
    """More than ten classes: digits are the guesses, and names are typed."""
    classes = (*HOSTILE, *(f"class {i}" for i in range(40)))
    texts = [f"{HOSTILE[i % 4]} {i}\nsecond line" for i in range(6)]
    labels = [i % 4 for i in range(6)]
    rows = [json.dumps({"text": text, "label": classes[label]}) for text, label in zip(texts, labels, strict=True)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    header = Header(
        data=str(tmp_path / "texts.jsonl"), classes=classes, length=6, fingerprint=fingerprint([None] * 6, labels),
        strategy="random", seed=0, options={"classes": list(classes), "labels": True, "texts": True},
        random=tuple(range(6)), probability=1.0,
    )  # fmt: skip
    entries = [
        Entry(id=i, file=None, label=labels[i], guesses=((5, 0.6), (1, 0.4)), probability=1.0, part="random")
        for i in range(6)
    ]
    write_queue(Queue(header, tuple(entries)), tmp_path / "queue.jsonl")
    with cases.served(tmp_path) as server:
        page = visit(server)
        assert page.inner_text("#stage") == texts[0]
        page.keyboard.press("g")
        name = page.get_by_role("button", name=texts[0].split("\n")[0])
        assert name.get_attribute("data-place") == "0"  # a screen reader reads the text, and not its number
        page.keyboard.press("v")
        page.wait_for_selector("#stage[data-place='0']")
        assert page.inner_text("#given") == f"Given label: {HOSTILE[0]}"
        press(page, "1", 1)
        assert page.inner_text("#stage") == texts[1]
        page.keyboard.press("/")
        page.keyboard.type("class 1")
        page.keyboard.press("Enter")  # which is a name of its own, besides the beginning of others
        page.wait_for_selector("#stage[data-place='2']")
        page.keyboard.press("/")
        page.keyboard.type("class")
        page.keyboard.press("Enter")
        assert "40 classes begin with class" in page.inner_text("#spoken")
        records = saved(page, tmp_path / "verified.jsonl", 2)
        assert [r["verified"] for r in records] == ["class 1", "class 1"]
        assert page.title() == "verifix review"
        assert strange(page, server) == []


def test_arrays_are_drawn(tmp_path, visit):
    x = np.random.default_rng(0).random((5, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "digits.npz", x=x, y=np.arange(5))
    header = Header(
        data=str(tmp_path / "digits.npz"), classes=tuple("01234"), length=5,
        fingerprint=fingerprint([None] * 5, range(5)), strategy="random", seed=0,
        options={"classes": None, "labels": True, "texts": False}, random=tuple(range(5)), probability=1.0,
    )  # fmt: skip
    entries = [Entry(id=i, file=None, label=i, guesses=(), probability=1.0, part="random") for i in range(5)]
    write_queue(Queue(header, tuple(entries)), tmp_path / "queue.jsonl")
    with cases.served(tmp_path) as server:
        page = visit(server)
        assert page.evaluate("document.querySelector('#stage img').naturalWidth") == 8


def test_the_gain_is_told_as_it_grows(tmp_path, visit):
    """A correction was made in an earlier run of the page; it sets right all random samples but the first."""
    queue = cases.make_queue(tmp_path, 40, drawn=20)
    (tmp_path / "net.pt").write_bytes(b"weights")
    flags = ["--model", "py:net.py:build", "--checkpoint", str(tmp_path / "net.pt"), "--verified-from", "unseen"]
    about = _about(parse(["review", str(tmp_path / "queue.jsonl"), *flags]), queue)
    of = {entry.id: entry for entry in queue.entries}
    before = {str(i): (of[i].label + 1) % 4 for i in queue.header.random}
    after = {str(i): before[str(i)] if turn == 0 else of[i].label for turn, i in enumerate(queue.header.random)}
    look = {
        "about": about,
        "turns": 0,
        "since": 0,
        "labels": 50,
        "before": before,
        "after": after,
        "changed": True,
        "seconds": 1.0,
    }
    (tmp_path / "verified.looks.jsonl").write_text(json.dumps(look) + "\n")
    with cases.served(tmp_path, *flags) as server:
        client = server.connect()
        assert client.decide(*((place, "ok", e.label) for place, e in enumerate(queue.entries[:8]))) == 200
        told = visit(server).inner_text("#gain")
        assert re.match(r"\+75\.0 points \(−\d+\.\d to \+100\.0\) on 4 random samples: 3 set right, 0 broken\. ", told)
        more, random = map(
            int, re.search(r"about (\d+) more labels \((\d+) of them of random samples\)", told).groups()
        )
        assert (more, 0 < random < 20) == (2 * random, True)
        assert client.decide(*((place + 8, "ok", e.label) for place, e in enumerate(queue.entries[8:]))) == 200
        page = visit(server, "Bob")
        cases.wait_for(lambda: "on 20 random samples" in page.inner_text("#gain"))
        assert "19 set right, 0 broken. The corrections improve the model; you may stop." in page.inner_text("#gain")
        assert strange(page, server) == []
