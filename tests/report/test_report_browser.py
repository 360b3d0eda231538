"""The report in a real browser: the Chromium of the system, without a network to speak of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import report_cases as cases
from tests.browsers import ARGUMENTS, FAINT, chromium
from verifix.report import render
from verifix.report.files import as_result
from verifix.report.page import sections

pytestmark = pytest.mark.browser

CASES = ("digits", "minimal", "training", "not proven", "texts", "huge", "hostile")
VIEWS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    for name in CASES:
        (folder / f"{name}.html").write_text(cases.page(name), encoding="utf-8", newline="")
    return folder


@pytest.fixture(scope="module")
def engine():
    from playwright.sync_api import sync_playwright

    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)  # with a fresh profile of its own
        yield browser
        browser.close()


@pytest.fixture
def view(engine, folder):
    """Open a report, and note everything that it says or asks for."""
    contexts = []

    def show(name: str, width: int = 1280, scheme: str = "light"):
        context = engine.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.noted = []
        page.on("console", lambda message: page.noted.append(("console", message.text)))
        page.on("pageerror", lambda error: page.noted.append(("error", str(error))))
        page.on("dialog", lambda dialog: page.noted.append(("dialog", dialog.message)))
        page.on("request", lambda request: page.noted.append(("request", request.url)))
        page.on("requestfailed", lambda request: page.noted.append(("failed", request.url)))
        page.goto((folder / f"{name}.html").as_uri(), wait_until="load")
        return page

    yield show
    for context in contexts:
        context.close()


def noted(page, folder: Path, name: str) -> list[tuple[str, str]]:
    own = (folder / f"{name}.html").as_uri()
    return [(kind, what) for kind, what in page.noted if what != own and not what.startswith("data:image/png;base64,")]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), VIEWS)
@pytest.mark.parametrize("name", CASES)
def test_a_report_opens_without_error_request_or_sideways_scroll(view, folder, name, width, scheme):
    page = view(name, width, scheme)
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    wide = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]")
    assert max(wide[:2]) <= wide[2] == width
    page.evaluate("scrollTo(1000, 0)")
    assert page.evaluate("scrollX") == 0
    for section, title in sections(as_result(cases.CASES[name]())).items():
        assert page.locator(f"#{section}").is_visible()
        assert page.locator(f"#{section}-title").is_visible()
        assert page.locator(f"nav a[href='#{section}']").inner_text() == title
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert noted(page, folder, name) == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["digits", "huge", "hostile"])
def test_nothing_is_cut_off_at_the_edge(view, name, width):
    """Not even in a box that scrolls: no table hides a figure. Only the contents may be wider than a phone."""
    page = view(name, width)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    beyond = page.evaluate(
        """() => [...document.querySelectorAll('body *')].filter(e => {
            const box = e.getBoundingClientRect();
            return box.width > 1 && (box.right > innerWidth + 1 || box.left < -1)
                && !e.closest('nav') && !e.closest('svg');
        }).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert beyond == []
    hidden = page.evaluate(
        """() => [...document.querySelectorAll('main, main *')].filter(
            e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline'
                && !e.closest('svg, .track, .matrix th')).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert hidden == []


def test_the_contents_stay_in_view_and_lead_to_a_heading_that_is_not_covered(view):
    for width in (390, 1280):
        page = view("digits", width)
        page.locator("nav a[href='#stages']").click()
        page.wait_for_function("scrollY > 1000")
        assert page.locator("nav").bounding_box()["y"] == 0
        covered = """() => { const box = document.querySelector('#stages-title').getBoundingClientRect();
            return document.elementFromPoint(box.left + 5, box.top + 5).id; }"""
        assert page.evaluate(covered) == "stages-title"


def test_nothing_is_green_unless_a_gain_is_proven(view):
    """Every colour that the browser paints is compared with the green of a proven gain."""
    painted = """() => {
        const probe = document.createElement('i'); document.documentElement.append(probe);
        probe.style.color = getComputedStyle(document.documentElement).getPropertyValue('--good');
        const green = getComputedStyle(probe).color; probe.remove();
        const ways = ['color', 'backgroundColor', 'borderTopColor', 'borderLeftColor', 'fill', 'stroke'];
        return [...document.body.querySelectorAll('*')].filter(
            e => ways.some(way => getComputedStyle(e)[way] === green)).length; }"""
    for scheme in ("light", "dark"):
        assert view("digits", 1280, scheme).evaluate(painted) > 5
        assert view("not proven", 1280, scheme).evaluate(painted) == 0
        assert view("training", 1280, scheme).evaluate(painted) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_text_stands_out_from_what_is_behind_it(view, width, scheme):
    """Contrast of at least 4.5 (WCAG AA), computed by the browser from the colours that it paints."""
    faint = view("digits", width, scheme).evaluate(FAINT)
    assert faint == []


def test_light_and_dark_are_different_and_print_is_light(view):
    def paper(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = view("digits", 1280, "light"), view("digits", 1280, "dark")
    assert paper(light) != paper(dark)
    assert paper(dark) == "rgb(20, 22, 26)"
    dark.emulate_media(media="print")
    assert paper(dark) == "rgb(255, 255, 255)"
    assert not dark.locator("nav").is_visible()
    assert dark.locator("#stages details table").first.is_visible()
    stroke = "getComputedStyle(document.querySelector('#strength svg path[style*=\"--after\"]')).stroke"
    assert light.evaluate(stroke) != view("digits", 1280, "dark").evaluate(stroke)


def test_hostile_names_are_text_and_nothing_else(view, folder):
    page = view("hostile", 390)
    assert noted(page, folder, "hostile") == []
    assert page.title() == "Improved: a model – verifix report"
    assert page.url == (folder / "hostile.html").as_uri()
    texts = page.evaluate("[...document.querySelectorAll('bdi')].map(e => [e.textContent, e.childElementCount])")
    assert all(children == 0 for _, children in texts)
    found = [text for text, _ in texts]
    for name in cases.HOSTILE:
        shown = name.replace("\r", "")
        # a note, a class, a sample, a layer, a skipped parameter, a stage, a role and a path at least
        assert found.count(shown) >= 8, name
    ours = view("digits").evaluate("[...new Set([...document.querySelectorAll('*')].map(e => e.localName))]")
    theirs = page.evaluate("[...new Set([...document.querySelectorAll('*')].map(e => e.localName))]")
    assert set(theirs) - set(ours) <= {"blockquote"}
    assert (
        page.evaluate(
            """() => [...document.querySelectorAll('*')].flatMap(e => [...e.attributes]).filter(
            a => a.name.startsWith('on') || ['autofocus', 'srcdoc', 'formaction', 'x', 'q'].includes(a.name)
                && !a.ownerElement.closest('svg')).length"""
        )
        == 0
    )
    assert page.evaluate("getComputedStyle(document.body).display") == "block"
    assert page.evaluate("document.querySelectorAll('style').length") == 1
    assert page.evaluate("[...document.querySelectorAll('h1')].length") == 1
    assert page.evaluate("document.activeElement === document.body")


def test_an_override_of_direction_stays_in_its_name(view):
    page = view("hostile", 1280)
    order = page.evaluate(
        """() => { const answer = [...document.querySelectorAll('.answer')].find(
            e => e.querySelector('bdi').textContent.startsWith('\\u202e'));
            const box = node => { const r = document.createRange(); r.selectNodeContents(node);
                return r.getBoundingClientRect().left; };
            return [box(answer.firstChild), box(answer.lastChild)]; }"""
    )
    assert order[0] < order[1]  # the word before the name, and then how sure the answer was


def test_names_that_no_page_can_hold_are_pictured(engine, tmp_path):
    result = cases.hostile_result()
    names = list(cases.UNSHOWABLE)
    result["examples"] = [e | {"name": name} for e, name in zip(result["examples"], names, strict=False)]
    path = tmp_path / "names.html"
    path.write_text(render(result), encoding="utf-8", newline="")
    context = engine.new_context()
    page = context.new_page()
    page.goto(path.as_uri())
    found = page.evaluate("[...document.querySelectorAll('bdi')].map(e => e.textContent)")
    assert set(cases.UNSHOWABLE.values()) <= set(found)
    context.close()


def test_a_script_would_not_run_even_if_one_got_in(engine, tmp_path):
    """The policy of the page is the second wall: it holds if the first one, escaping, should fall."""
    page_text = cases.page("minimal").replace(
        "<main>",
        "<script>document.title = 'owned'</script><img src='https://example.invalid/a.png' onerror='document.title=1'>"
        "<link rel='stylesheet' href='https://example.invalid/a.css'><main>",
    )
    path = tmp_path / "owned.html"
    path.write_text(page_text, encoding="utf-8")
    context = engine.new_context()
    page = context.new_page()
    failed, answered = {}, []
    page.on("requestfailed", lambda request: failed.update({request.url: request.failure}))
    page.on("response", lambda response: answered.append(response.url))
    page.goto(path.as_uri(), wait_until="load")
    assert page.title() == "No change: a model – verifix report"
    assert failed == dict.fromkeys(("https://example.invalid/a.png", "https://example.invalid/a.css"), "csp")
    assert [url for url in answered if url.startswith("http")] == []
    context.close()
