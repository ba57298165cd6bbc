"""report.html: one file, no network, and hostile text stays text; in a real browser where one is installed."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from engram_bench.report import html, plots
from tests.test_report import AFTER, BEFORE, HOSTILE, report, sample

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ODD = sample("engram", "odd", False, prompt=HOSTILE, expected="</script><b>x", output="<img src=x onerror=alert(1)>")
SAMPLES = [*BEFORE, *AFTER, ODD, sample("baseline", "odd", False, prompt=HOSTILE, expected="</script><b>x", output="y")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    made = report(SAMPLES)
    file = folder / "report.html"
    file.write_text(html.render(made, SAMPLES, plots.write(made, folder / "plots")), encoding="utf-8")
    return file


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_it_asks_for_nothing_from_elsewhere_and_no_data_becomes_markup(page):
    text = page.read_text(encoding="utf-8")
    parser = Elements()
    parser.feed(text)
    tags = [tag for tag, _ in parser.found]
    assert tags.count("script") == 2
    assert "b" not in tags
    sources = [attrs.get("src") or attrs.get("href") for tag, attrs in parser.found if tag in ("img", "link", "a")]
    assert sources
    assert all(source.startswith("data:") for source in sources)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    row = next(row for row in json.loads(data)["rows"] if row[2] == HOSTILE)
    assert row[3:] == ["</script><b>x", {"engram": [ODD["output"], False], "baseline": ["y", False]}]


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
    rows = browser.find_elements("css selector", "#items tbody tr")
    return [[cell.text for cell in row.find_elements("css selector", "td")] for row in rows]


def test_a_reader_sorts_filters_and_compares(page, browser):
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    assert len(lines(browser)) == 21
    assert any(HOSTILE.split()[0] in line[2] for line in lines(browser))
    assert browser.find_elements("css selector", "#items b, #items img") == []

    by_prompt = browser.find_element("css selector", '#items button[data-column="2"]')
    by_prompt.send_keys("\n")  # by keyboard
    ascending = [line[2] for line in lines(browser)]
    by_prompt.send_keys("\n")
    assert [line[2] for line in lines(browser)] == ascending[::-1] != ascending
    assert by_prompt.find_element("xpath", "..").get_attribute("aria-sort") == "descending"

    browser.find_elements("css selector", "#items button.open")[0].send_keys("\n")
    dialog = browser.find_element("id", "item")
    assert dialog.is_displayed()
    opened = dialog.find_elements("css selector", "tbody td:first-child")
    assert [cell.text for cell in opened] == ["baseline", "engram"]
    dialog.find_element("css selector", "button").click()
    assert not dialog.is_displayed()

    browser.find_element("id", "differ").click()
    assert all(line[4] != line[5] for line in lines(browser))
    assert len(lines(browser)) == 17
    assert browser.find_elements("css selector", "#items mark")
    browser.find_element("id", "search").send_keys("q i19")
    assert [line[2] for line in lines(browser)] == []
    assert "0 answers" in browser.find_element("id", "count").text
    assert browser.get_log("browser") == []
