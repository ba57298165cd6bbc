"""report.html: one file, no network, and hostile text stays text; in a real browser where one is installed."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from engram_bench.report import gate, html, markdown, plots
from tests.test_gate import FAIL
from tests.test_report import AFTER, BEFORE, HOSTILE, report, sample

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
IMAGE = "<img src=x onerror=alert(1)>"
ODD = sample("engram", "odd", False, prompt=HOSTILE, expected="</script><b>x", output=f"a {IMAGE} b")
SAMPLES = [*BEFORE, *AFTER, ODD, {**ODD, "variant": "baseline", "output": "a y b"}]
MISSED = {"id": HOSTILE, "requirement": HOSTILE, "measured": 0.0, "low": 0.0, "passed": False}


def written(folder, samples, **changes):
    made = report(samples, **changes)
    made["model"]["source"] = made["variants"][0]["about"] = HOSTILE
    file = folder / "report.html"
    file.write_text(html.render(made, samples, plots.write(made, folder / "plots")), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return written(tmp_path_factory.mktemp("page"), SAMPLES, thresholds=[MISSED])


class Elements(HTMLParser):
    """Every tag with its attributes and the tags it is in."""

    def __init__(self, text):
        super().__init__()
        self.found, self.inside = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), tuple(self.inside)))
        if tag not in ("meta", "link", "img", "input"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag


def test_it_asks_for_nothing_from_elsewhere_and_no_data_becomes_markup(page):
    text = page.read_text(encoding="utf-8")
    elements = Elements(text).found
    tags = [tag for tag, _, _ in elements]
    assert tags.count("script") == 2
    assert not {"b", "a", "iframe", "object"} & set(tags)
    sources = [attrs.get("src") or attrs.get("href") for tag, attrs, _ in elements if tag in ("img", "link", "script")]
    assert all(source is None or source.startswith("data:") for source in sources)
    (policy,) = [attrs["content"] for _, attrs, _ in elements if "http-equiv" in attrs]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "http://" not in re.sub(r"\[x\]\(http://e.vil\)", "", text), "but what the data say"
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    row = next(row for row in json.loads(data)["rows"] if row[2] == HOSTILE)
    assert row[3:] == ["</script><b>x", {"engram": [ODD["output"], False], "baseline": ["a y b", False]}]


def test_the_greedy_answers_of_the_first_seed_are_shown(tmp_path):
    drawn = sample("engram", "i0", False, sample=1, output="drawn")
    samples = [*BEFORE, *AFTER, drawn, sample("engram", "i0", False, sample=-1, output="again"),
               sample("engram", "i0", False, seed=1, output="another training")]  # fmt: skip
    text = written(tmp_path, samples).read_text(encoding="utf-8")
    assert not any(f'"{output}"' in text for output in ("drawn", "again", "another training"))


def test_it_tells_all_that_report_md_tells():
    made = report(BEFORE + AFTER, thresholds=[MISSED])
    made["gate"] = gate.compare(report(AFTER), report([{**s, "variant": "engram"} for s in BEFORE]), FAIL)
    made["run"]["complete"] = False
    told = html.render(made, [], {})
    titles = re.findall("^## (.*)$", markdown.render(made, []), re.MULTILINE)
    named = {"Interrupted", "Comparison with the gate's baseline", "Contrasts with the baseline", "Training"}
    assert named <= set(titles)
    assert all(f"<h2>{title}</h2>" in told.replace("&#39;", "'") for title in titles)
    assert '<td class="strong">regressed</td>' in told


def test_whoever_cannot_see_it_is_told_what_everything_is(page):
    elements = Elements(page.read_text(encoding="utf-8")).found
    assert ("html", {"lang": "en"}, ()) in elements
    assert all(attrs["alt"] for tag, attrs, _ in elements if tag == "img")
    assert all("label" in inside for tag, _, inside in elements if tag in ("select", "input"))
    assert all(attrs["scope"] in ("col", "row") for tag, attrs, _ in elements if tag == "th")
    wide = [attrs for tag, attrs, _ in elements if attrs.get("class") == "wide"]
    assert all(attrs["tabindex"] == "0" and (attrs.get("aria-label") or attrs.get("aria-labelledby")) for attrs in wide)
    assert len(wide) == sum(tag == "table" and "dialog" not in inside for tag, _, inside in elements)


@pytest.fixture(scope="module")
def browser():
    if not (CHROMIUM and DRIVER):
        pytest.skip("no browser here; install chromium and chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def lines(browser):
    """The cells of the table, all at once: asked one by one they take a while."""
    return browser.execute_script(
        "return [...document.querySelectorAll('#items tbody tr')].map(row => [...row.cells].map(c => c.innerText))"
    )


def at(browser, name):
    return browser.find_element("id", name)


def marks(browser):
    return [[mark.text for mark in row.find_elements("css selector", "mark")]
            for row in browser.find_elements("css selector", "#items tbody tr")]  # fmt: skip


def choose(browser, select, text):
    at(browser, select).send_keys(text)  # by keyboard


@pytest.fixture
def opened(page, browser):
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    yield browser
    assert browser.get_log("browser") == []
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(r => r.name.slice(0, 5))")
    assert set(loaded) <= {"data:"}, "nothing from the network"


def test_a_reader_sorts_by_keyboard(opened):
    assert len(lines(opened)) == 21
    assert any(HOSTILE.split()[0] in line[2] for line in lines(opened))
    assert opened.find_elements("css selector", "#items b, #items img, #items script") == []
    by_prompt = opened.find_element("css selector", '#items button[data-column="2"]')
    by_prompt.send_keys("\n")
    ascending = [line[2] for line in lines(opened)]
    assert by_prompt.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    by_prompt.send_keys("\n")
    assert [line[2] for line in lines(opened)] == ascending[::-1] != ascending
    assert by_prompt.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    others = opened.find_elements("css selector", "#items th:not(:nth-child(3))")
    assert {th.get_attribute("aria-sort") for th in others} == {"none"}


def test_a_reader_filters_and_hears_how_many_are_left(opened):
    assert at(opened, "count").aria_role == "status"
    at(opened, "search").send_keys("q i1")
    assert len(lines(opened)) == 11
    assert "11 questions" in at(opened, "count").text
    at(opened, "differ").click()
    assert [line[2] for line in lines(opened)] == [f"q i{n}" for n in range(10, 18)]
    at(opened, "search").send_keys("9")
    assert lines(opened) == []
    assert "0 questions" in at(opened, "count").text


def test_a_reader_compares_any_two_variants(opened):
    heads = [th.text for th in opened.find_elements("css selector", "#items th")]
    assert heads[4:] == ["left: baseline", "right: engram"]
    at(opened, "search").send_keys("q i5")
    assert [line[4:] for line in lines(opened)] == [["wrong", "right"]]
    assert marks(opened) == [["wrong", "right"]]
    at(opened, "search").clear()
    at(opened, "search").send_keys("onerror")
    assert marks(opened) == [["y", IMAGE]]
    at(opened, "search").clear()
    at(opened, "search").send_keys("q i5")
    choose(opened, "left", "engram")
    choose(opened, "right", "baseline")
    assert [line[4:] for line in lines(opened)] == [["right", "wrong"]]
    choose(opened, "left", "baseline")
    assert marks(opened) == [[]]


def test_a_question_opens_and_closes_by_keyboard_and_what_was_focused_is_again(opened):
    question = opened.find_elements("css selector", "#items button.open")[0]
    assert question.accessible_name
    question.send_keys("\n")
    dialog = at(opened, "item")
    assert dialog.is_displayed()
    answers = dialog.find_elements("css selector", "tbody tr")
    assert [row.text.split()[0] for row in answers] == ["baseline", "engram"]
    opened.switch_to.active_element.send_keys("\ue00c")  # Escape
    assert not dialog.is_displayed()
    assert opened.switch_to.active_element == question

    at(opened, "search").send_keys("onerror")
    opened.find_element("css selector", "#items button.open").send_keys("\n")
    assert all(text in dialog.text for text in ("<script>alert(1)</script>", "</script><b>x", IMAGE))
    assert dialog.find_elements("css selector", "b, img, script") == []


def test_tab_goes_through_the_controls_in_the_order_they_are_seen(opened):
    at(opened, "left").send_keys("\t")
    visited = []
    while len(visited) < 13:
        focused = opened.switch_to.active_element
        visited.append(focused.get_attribute("id") or focused.get_attribute("data-column") or focused.aria_role)
        focused.send_keys("\t")
    assert visited == [
        "right", "category", "split", "search", "differ", "region", "0", "1", "2", "3", "4", "5", "button",
    ]  # fmt: skip


def test_categories_and_splits_are_filtered_and_long_tables_go_on(browser, tmp_path):
    many = [sample("engram", f"i{n:03}", True, category=category, split=split)
            for n in range(120) for category, split in (("facts", "seen"), ("mine", "rephrased"))]  # fmt: skip
    browser.get(written(tmp_path, many, categories=("facts", "mine")).as_uri())
    assert len(lines(browser)) == 100
    at(browser, "more").send_keys("\n")
    assert len(lines(browser)) == 200
    assert browser.switch_to.active_element == browser.find_elements("css selector", "#items button.open")[100]
    choose(browser, "category", "mine")
    assert {line[0] for line in lines(browser)} == {"mine"}
    choose(browser, "split", "seen")
    assert lines(browser) == []
    choose(browser, "category", "all")
    assert {line[0] for line in lines(browser)} == {"facts"}
    assert len(lines(browser)) == 100
