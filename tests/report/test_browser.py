"""The page in a real browser: what is drawn, what a reader can do, and that nothing from data acts.

Needs a Chromium that is installed (Debian's package ``chromium``); playwright drives it and brings none.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moetrace.report import write_html
from tests.report.stand_in import HOSTILE, StandIn, demo_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="the browser tests need chromium (apt install chromium)"
)

CHARTS = (
    "layers-chart", "experts-chart", "expert-chart", "controls-chart", "matched-chart", "coalitions-chart",
    "shares-chart", "checks-chart", "case-chart", "paper-chart",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("browser") / "report.html"
    return write_html(demo_report(), path, compare="qwen3-30b-a3b")


class Opened:
    """A page that is ready, what it said on the console, what it asked for, and which dialogs it showed."""

    def __init__(self, context: Any, path: Path) -> None:
        self.page = context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready=true]", timeout=60_000)

    def js(self, code: str, value: Any = None) -> Any:
        return self.page.evaluate(code, value)

    def traces(self, chart: str) -> list[dict[str, Any]]:
        """What plotly was given and drew."""
        keys = "({x: t.x, y: t.y, z: t.z, ids: t.ids, type: t.type, name: t.name, marker: t.marker})"
        return self.js(f"id => document.getElementById(id).data.map(t => {keys})", chart)

    def place(self, chart: str, x: float, y: float) -> tuple[float, float]:
        """Where a point of a chart is in the window."""
        self.page.locator(f"#{chart}").evaluate(
            "node => node.scrollIntoView({block: 'center', behavior: 'instant'})"
        )
        code = """([id, x, y]) => {
            const node = document.getElementById(id), at = node.getBoundingClientRect();
            const full = node._fullLayout;
            return [at.left + full._size.l + full.xaxis.d2p(x), at.top + full._size.t + full.yaxis.d2p(y)];
        }"""
        self.page.wait_for_timeout(100)
        return tuple(self.js(code, [chart, x, y]))

    def hover(self, chart: str, x: float, y: float) -> str:
        """Text of the hover at a point, its lines joined."""
        across, down = self.place(chart, x, y)
        self.page.mouse.move(across - 3, down - 3)
        self.page.mouse.move(across, down, steps=3)
        label = self.page.locator(f"#{chart} .hoverlayer .hovertext")
        label.first.wait_for(state="attached", timeout=20_000)
        return label.first.text_content()


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    found = Opened(context, file)
    yield found
    found.page.wait_for_timeout(50)
    assert found.said == []
    assert found.asked == [file.as_uri()]
    context.close()


def specificity() -> Any:
    """The selected expert's pairs in the order of the chart."""
    report = demo_report()
    rows = report.traces["experts_validation"].specificity(report.star).rows
    return rows.sort_values("specificity", ascending=False, kind="stable").reset_index(drop=True)


# ---------------------------------------------------------------- what is drawn


def test_every_chart_is_drawn_and_the_page_is_quiet(opened):
    for chart in CHARTS:
        assert opened.page.locator(f"#{chart} svg.main-svg").count() >= 1, chart
        marks = f"#{chart} .point, #{chart} .js-line, #{chart} .hm image"
        assert opened.page.locator(marks).count() >= 1, chart
    drawn = opened.js("Object.keys(Look.data)")
    assert {"layers", "experts", "controls", "coalitions", "checks", "explorer", "paper"} <= set(drawn)


def test_the_selected_layer_is_named_and_the_floor_is_drawn(opened):
    assert (
        f"L{demo_report().layer} selected" in opened.page.locator("#layers-chart .annotation").text_content()
    )
    assert opened.page.locator("#layers-chart .shapelayer path").count() == 1


def test_an_empty_report_is_a_quiet_page(browser, tmp_path):
    context = browser.new_context()
    opened = Opened(context, write_html(StandIn(), tmp_path / "empty.html"))
    assert opened.said == []
    assert opened.page.locator("p.absent").count() >= 8
    context.close()


def test_a_browser_that_cannot_unpack_says_so(browser, file):
    context = browser.new_context()
    context.add_init_script("delete window.DecompressionStream")
    opened = Opened(context, file)
    assert "the tables below hold their numbers" in opened.page.locator("#layers-chart").text_content()
    opened.page.locator("#layers summary").first.click()
    assert opened.page.locator("#layers table").is_visible()
    assert opened.said == []
    context.close()


# ---------------------------------------------------------------- what a reader can do


@pytest.mark.parametrize("rank", [0, 5, 20])
def test_hover_shows_the_right_case(opened, rank):
    row = specificity().loc[rank]
    told = demo_report().texts[row.case_id]
    text = opened.hover("controls-chart", rank + 1, row.control_rescue if rank else row.star_rescue)
    assert f"case {row.case_id}" in text
    assert told["true"].strip() in text
    assert told["prompt"][:40] in text
    assert f"{row.specificity:+.3f}".replace("-", "\u2212") in text


def test_hover_on_the_map_shows_the_right_expert(opened):
    trace = demo_report().traces["experts_validation"]
    means = trace.effects.mean(axis=0)
    best = int(means.argmax())
    layer, expert = trace.sites.loc[best]
    text = opened.hover("experts-chart", int(layer), int(expert))
    assert f"L{layer:02d}E{expert:03d}: {means[best]:+.3f} logits" in text
    active = int(trace.arrays.clean_active[:, best].sum())
    assert f"clean-active in {active} of {len(trace)} cases" in text


def test_zoom_by_dragging(opened):
    left, right = opened.place("layers-chart", 2, 1), opened.place("layers-chart", 5, 3)
    opened.page.mouse.move(*left)
    opened.page.mouse.down()
    opened.page.mouse.move(*right, steps=5)
    opened.page.mouse.up()
    low, high = opened.js("document.getElementById('layers-chart')._fullLayout.xaxis.range")
    assert low == pytest.approx(2, abs=0.2)
    assert high == pytest.approx(5, abs=0.2)


def test_relation_filters(opened):
    report = demo_report()
    trace = report.traces["layers_validation"]
    relation = trace.cases.relation_id.mode()[0]
    inside = (trace.cases.relation_id == relation).to_numpy()
    opened.page.select_option("#layers-relation", relation)
    assert opened.traces("layers-chart")[1]["y"] == pytest.approx(
        trace.effects[inside].mean(axis=0), rel=1e-5
    )

    experts = report.traces["experts_validation"]
    opened.page.select_option("#experts-relation", relation)
    shown = np.array(opened.traces("experts-chart")[0]["z"], float)  # experts x layers, signed roots
    width = shown.shape[1]
    active = experts.arrays.clean_active[inside].any(axis=0).reshape(width, -1).T
    means = experts.effects[inside].mean(axis=0).reshape(width, -1).T
    np.testing.assert_array_equal(np.isnan(shown), ~active)
    np.testing.assert_allclose((np.sign(shown) * shown**2)[active], means[active], rtol=1e-4, atol=1e-6)

    opened.page.select_option("#controls-relation", relation)
    rows = specificity()
    assert opened.traces("controls-chart")[2]["ids"] == rows.case_id[rows.relation_id == relation].tolist()


def test_experts_in_the_order_of_their_rescue(opened):
    opened.page.select_option("#experts-order", "rescue")
    shown = np.array(opened.traces("experts-chart")[0]["z"], float)
    steps = np.diff(shown, axis=0)
    assert (steps[~np.isnan(steps)] <= 0).all()


def test_tables_sort_as_numbers_and_back(opened):
    table = opened.page.locator("#controls details", has_text="Case by case").first
    table.locator("summary").click()
    head = table.locator("th", has_text="specificity")
    assert head.get_attribute("aria-sort") == "none"
    orders = []
    for state in ("ascending", "descending"):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == state
        place = head.evaluate("node => node.cellIndex + 1")
        texts = table.locator(f"tbody td:nth-child({place})").all_text_contents()
        orders.append([float(text.replace("\u2212", "-")) for text in texts])
    assert orders[0] == sorted(orders[0])
    assert orders[1] == sorted(orders[1], reverse=True)
    assert min(orders[0]) < 0 < max(orders[0])
    head.locator("button").focus()
    opened.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"


def test_a_mark_opens_its_case(opened):
    row = specificity().loc[0]
    opened.page.mouse.click(*opened.place("controls-chart", 1, row.star_rescue))
    assert f"{row.case_id}, validation" in opened.page.locator("#case-facts").text_content()
    assert (
        opened.page.locator("#cases-list [aria-selected=true]").get_attribute("id") == f"case-{row.case_id}"
    )
    told = demo_report().texts[row.case_id]
    assert "".join(opened.page.locator("#case-tokens .token").all_text_contents()) == "".join(told["tokens"])
    subject = "".join(opened.page.locator("#case-tokens .subject").all_text_contents())
    assert subject == told["subject"]


def test_a_cell_of_the_map_shows_its_expert_case_by_case(opened):
    trace = demo_report().traces["experts_validation"]
    best = int(trace.effects.mean(axis=0).argmax())
    layer, expert = map(int, trace.sites.loc[best])
    opened.page.mouse.click(*opened.place("experts-chart", layer, expert))
    active = trace.arrays.clean_active[:, best]
    order = np.argsort(-trace.effects[active, best])
    shown = opened.traces("expert-chart")[0]
    assert shown["ids"] == trace.cases.case_id[active].iloc[order].tolist()
    assert (
        opened.page.locator("#one-expert option:checked")
        .text_content()
        .startswith(f"L{layer:02d}E{expert:03d}")
    )


def test_cases_are_found_by_text_relation_and_order(opened):
    report = demo_report()
    some = report.cases["usable"][3]
    opened.page.fill("#find", some.prompt.upper())
    assert f"case-{some.case_id}" in opened.page.locator("#cases-list [role=option]").evaluate_all(
        "all => all.map(n => n.id)"
    )
    opened.page.fill("#find", "no such fact")
    assert opened.page.locator("#cases-list [role=option]").count() == 0
    opened.page.fill("#find", "")
    opened.page.select_option("#explorer-relation", some.relation_id)
    count = sum(case.relation_id == some.relation_id for case in report.cases["usable"])
    assert opened.page.locator("#cases-list [role=option]").count() == count
    opened.page.select_option("#explorer-relation", "")
    opened.page.select_option("#explorer-order", "rescue")
    rescue = {}
    for trace in (report.traces["layers"], report.traces["layers_validation"]):
        rescue |= dict(zip(trace.cases.case_id, trace.effects[:, report.layer], strict=True))
    ids = opened.page.locator("#cases-list [role=option]").evaluate_all(
        "all => all.map(n => Number(n.id.slice(5)))"
    )
    assert ids == sorted(rescue, key=lambda case_id: -rescue[case_id])


def test_keyboard_alone(opened):
    report = demo_report()
    opened.page.focus("#layers-chart")
    opened.page.keyboard.press("ArrowRight")
    opened.page.keyboard.press("ArrowRight")
    mean = report.traces["layers_validation"].effects.mean(axis=0)[1]
    readout = opened.page.locator("#layers-chart-readout")
    assert f"Layer 1: {mean:+.3f} logits" in readout.text_content()
    opened.page.keyboard.press("Tab")
    assert readout.text_content() == ""

    opened.page.focus("#experts-chart")
    for key in ("Home", "ArrowUp", "ArrowRight"):
        opened.page.keyboard.press(key)
    assert "L01E001" in opened.page.locator("#experts-chart-readout").text_content()
    opened.page.keyboard.press("Enter")
    assert opened.page.locator("#one-expert option:checked").text_content().startswith("L01E001")

    opened.page.focus("#controls-chart")
    opened.page.keyboard.press("End")
    opened.page.keyboard.press("Enter")
    last = specificity().case_id.iloc[-1]
    assert f"{last}, validation" in opened.page.locator("#case-facts").text_content()

    opened.page.focus("#cases-list")
    opened.page.keyboard.press("Home")
    opened.page.keyboard.press("ArrowDown")
    second = report.cases["usable"][1]
    assert (
        opened.page.locator("#cases-list").get_attribute("aria-activedescendant") == f"case-{second.case_id}"
    )
    assert f"{second.case_id}, " in opened.page.locator("#case-facts").text_content()


# ---------------------------------------------------------------- safety


def test_a_subject_that_is_a_script_stays_text(opened):
    hostile = demo_report().cases["validation"][0]
    opened.js("id => Page.openCase(id)", hostile.case_id)
    assert HOSTILE in opened.page.locator("#case-tokens").text_content()
    assert HOSTILE in opened.page.locator(f"#case-{hostile.case_id}").text_content()
    rows = specificity()
    rank = int(rows.index[rows.case_id == hostile.case_id][0])
    text = opened.hover("controls-chart", rank + 1, rows.control_rescue[rank])
    assert HOSTILE in text
    assert opened.js("[...document.scripts].filter(s => s.textContent.startsWith('alert')).length") == 0


def test_a_script_that_gets_in_does_not_run(browser, file):
    """The policy holds even where escaping failed."""
    context = browser.new_context()
    opened = Opened(context, file)
    opened.js("""() => {
        const made = document.createElement("script");
        made.textContent = "document.title = 'changed'";
        document.body.append(made);
        fetch("http://127.0.0.1:9/").catch(() => {});
    }""")
    opened.page.wait_for_timeout(100)
    assert opened.page.title() != "changed"
    assert len([line for line in opened.said if "Content Security Policy" in line]) >= 2
    context.close()


# ---------------------------------------------------------------- looks


def ground(opened: Opened) -> int:
    """Brightness of the page's background, 0 to 255."""
    color = opened.js("getComputedStyle(document.body).backgroundColor")
    return max(int(part) for part in color.strip("rgb()").split(","))


def test_dark_and_back(browser, file):
    context = browser.new_context(color_scheme="dark")
    opened = Opened(context, file)
    assert ground(opened) < 60
    text = opened.js("document.getElementById('layers-chart')._fullLayout.font.color")
    assert text == "#e3e6eb"
    opened.page.click("#theme")
    assert ground(opened) > 240
    assert opened.js("document.getElementById('layers-chart')._fullLayout.font.color") == "#1c232d"
    opened.page.emulate_media(color_scheme="light")
    opened.page.wait_for_timeout(200)
    opened.page.emulate_media(color_scheme="dark")
    opened.page.wait_for_selector("html[data-theme=dark]")
    assert ground(opened) < 60
    context.close()


@pytest.mark.parametrize("width", [320, 380, 768, 1920])
def test_no_sideways_scrolling(browser, file, width):
    context = browser.new_context(viewport={"width": width, "height": 800})
    opened = Opened(context, file)
    opened.page.locator("details").evaluate_all("all => all.forEach(d => { d.open = true; })")
    opened.page.wait_for_timeout(100)
    assert opened.js("document.documentElement.scrollWidth") <= width
    wide = "all => all.filter(n => n.getBoundingClientRect().right > innerWidth + 1).map(n => n.id)"
    assert opened.page.locator(".chart, .chart svg.main-svg").evaluate_all(wide) == []
    context.close()


def test_print_is_light_and_whole(browser, file, tmp_path):
    context = browser.new_context(color_scheme="dark")
    opened = Opened(context, file)
    opened.js(
        "addEventListener('beforeprint', () => { window.printed = document.documentElement.dataset.theme; })"
    )
    made = opened.page.pdf(path=tmp_path / "report.pdf")
    assert made.startswith(b"%PDF-")
    assert len(made) > 50_000
    assert opened.js("window.printed") == "light"
    assert opened.js("document.documentElement.dataset.theme") == "dark"
    assert opened.said == []
    opened.page.emulate_media(media="print")
    assert not opened.page.locator("nav").is_visible()
    assert opened.page.locator("#layers-chart").is_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1280])
def test_accessibility(browser, file, scheme, width):
    """axe-core finds nothing: names, roles, focus, contrast of text."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True
    )
    opened = Opened(context, file)
    opened.page.locator("details").evaluate_all("all => all.forEach(d => { d.open = true; })")
    found = axe.Axe().run(opened.page)
    assert found.violations_count == 0, found.generate_report()
    context.close()
