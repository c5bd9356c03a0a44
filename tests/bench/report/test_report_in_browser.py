"""A report in a real browser: what can be done with it, and that hostile texts do nothing.

The browser is Debian's chromium and chromium-driver; without them these tests are skipped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select
from support.sample_lists import rows, write_csv
from support.three_methods import three_methods
from support.trainings import validation

from masc_metrics.cli import main
from masc_metrics.validation import add_to_report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no Chromium: apt-get install chromium chromium-driver"
)
OPTIONS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage"""

HOSTILE = (
    "</script><script>window.ran = 1</script>",
    '<img src=x onerror="window.ran = 1">',
    "'\"><svg onload=window.ran=1>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:window.ran=1",
    "<!--<script>\u2028window.ran = 1",
    "evil \u202egnp.exe\u202c \u2066 right-to-left \u05d0\u05d1",
    "two\nlines\r\nand\ta tab",
    "&lt;b&gt; &amp; <b>bold</b>",
    "x" * 10_000,
)


class Browser(webdriver.Chrome):
    """Chromium, with the page's errors and the addresses that it asked for."""

    def open(self, page: Path, *, width: int = 1280, phone: bool = False) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": phone}
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.get(page.as_uri())

    def all(self, selector: str) -> list[WebElement]:
        return self.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.find_element(By.CSS_SELECTOR, selector)

    def column(self, name: str = "sample_id") -> list[str]:
        """Texts of a column of the page of the table that is shown."""
        script = """
            const cells = [...document.querySelectorAll('#table thead tr > *')];
            const place = cells.findIndex(cell => cell.dataset.name === arguments[0]);
            return [...document.querySelectorAll('#table tbody tr')].map(row => row.cells[place].innerText);
        """
        found: list[str] = self.execute_script(script, name)
        return found

    def line(self, selector: str) -> str:
        """Text of the first element, in one line."""
        return " ".join(self.one(selector).text.split())

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.get_log("browser")]

    def addresses(self) -> set[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self.get_log("performance")]
        sent = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return {address for address in sent if not address.startswith("data:")}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with Browser(options=options, service=Service(DRIVER)) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = three_methods(tmp_path_factory.mktemp("three"), concepts=2, prompts=2, size=64)
    scores, out = (samples.with_name(name) for name in ("scores.csv", "report.html"))
    options = ("--model", "tiny", "--max-num-patches", "64", "--device", "cpu", "--workers", "0", "--quiet")
    assert main(["score", str(samples), "--out", str(scores), *options]) == 3
    assert main(["report", str(scores), "--out", str(out), "--samples", "2", "--device", "cpu", "--quiet"]) == 0
    return out


def test_columns_sort_in_both_directions_and_missing_scores_come_last(browser: Browser, page: Path) -> None:
    browser.open(page)
    cp = sorted(float(row["cp"]) for row in rows(page.with_name("scores.csv")) if row["cp"])
    header = browser.one("#table th[data-name=cp] button")
    for ordered, direction in ((cp, "ascending"), (cp[::-1], "descending")):
        header.click()
        assert browser.column("cp") == [*(f"{value:.3f}" for value in ordered), "-"]
        assert browser.one("#table th[data-name=cp]").get_attribute("aria-sort") == direction
    browser.one("#table th[data-name=method] button").send_keys(Keys.ENTER)
    assert browser.column("method") == sorted(browser.column("method"))


def test_filters_keep_the_samples_that_fit_all_of_them(browser: Browser, page: Path) -> None:
    browser.open(page)
    table = rows(page.with_name("scores.csv"))
    Select(browser.one("#filter-method")).select_by_visible_text("LoRA rank 4")
    assert browser.column() == [row["sample_id"] for row in table if row["method"] == "LoRA rank 4"]
    browser.one("#filter-text").send_keys(table[0]["subject"].upper())
    of_first = [row for row in table if row["method"] == "LoRA rank 4" and row["concept"] == table[0]["concept"]]
    assert browser.column() == [row["sample_id"] for row in of_first]
    assert browser.one("#found").text == f"{len(of_first)} of 12 samples"
    browser.one("#filters [type=reset]").click()
    assert len(browser.column()) == 12
    low = sorted(float(row["cp"]) for row in table if row["cp"])[5]
    browser.one("#filter-low").send_keys(f"{low - 1e-4:.4f}")
    assert browser.column() == [row["sample_id"] for row in table if row["cp"] and float(row["cp"]) >= low]
    browser.one("#filters [type=reset]").click()
    Select(browser.one("#filter-state")).select_by_visible_text("failed")
    assert browser.column() == [table[-1]["sample_id"]]


def test_a_sample_opens_and_the_keyboard_goes_on_from_it(browser: Browser, page: Path) -> None:
    """In the order of the table: the keys follow its sorting, and the focus returns to where it was."""
    browser.open(page)
    browser.one("#table th[data-name=cp] button").click()
    order = browser.column()
    browser.all("#table .open")[0].send_keys(Keys.ENTER)
    assert browser.one("#sample-title").text.startswith(order[0])
    assert len(browser.all("#sample-body img")) == 4
    widths = browser.execute_script(
        "return [...document.querySelectorAll('#sample-body img')].map(i => i.naturalWidth)"
    )
    assert all(width > 0 for width in widths)
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert browser.one("#sample-title").text.startswith(order[1])
    assert browser.one("#sample-place").text == "2 of 12"
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not browser.one("#sample").is_displayed()
    assert browser.switch_to.active_element.text == order[0]


def test_a_button_without_effect_keeps_the_focus(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.all("#table .open")[-1].send_keys(Keys.ENTER)
    last = browser.one("#sample-title").text
    for _ in range(2):
        browser.one("#sample-next").send_keys(Keys.ENTER)
    assert browser.one("#sample-title").text == last
    assert browser.switch_to.active_element.get_attribute("id") == "sample-next"
    browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert browser.one("#sample-title").text != last


def test_groups_show_their_samples_with_maps(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert [len(browser.all(f"#group-{number} article")) for number in range(6)] == [2] * 6
    browser.one("#tab-0").send_keys(Keys.ARROW_RIGHT)
    assert browser.one("#group-1").is_displayed()
    assert not browser.one("#group-0").is_displayed()
    captions = [each.text for each in browser.all("#group-1 article:first-child figcaption")]
    assert captions == ["Reference", "Generated", "Match map", "Background map"]
    assert len(browser.all("#group-2 article:first-child .shot")) == 2


@pytest.mark.parametrize(("width", "phone"), [(1280, False), (360, True)])
def test_the_page_fits_its_width_without_errors_and_asks_for_nothing(
    width: int, phone: bool, browser: Browser, page: Path
) -> None:
    browser.errors()
    browser.addresses()
    browser.open(page, width=width, phone=phone)
    for selector in ("#tab-2", "#group-2 .open"):
        browser.execute_script("arguments[0].click()", browser.one(selector))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.one("#sample").rect["width"] <= width
    assert browser.errors() == []
    assert browser.addresses() == {page.as_uri()}


def test_a_long_table_has_pages(browser: Browser, tmp_path: Path) -> None:
    lines = [
        {"sample_id": n, "method": "a", "concept": n % 3, "cp": n / 120, "reference_image": "r.png"} for n in range(120)
    ]
    scores = write_csv(tmp_path / "scores.csv", lines)
    out = tmp_path / "report.html"
    assert main(["report", str(scores), "--out", str(out), "--maps", "0", "--quiet"]) == 0
    browser.open(out)
    assert len(browser.column()) == 50
    browser.one("#page-next").click()
    browser.one("#page-next").click()
    assert browser.column() == [str(number) for number in range(100, 120)]
    assert browser.one("#page").text == "Page 3 of 3"
    assert browser.one("#page-next").get_attribute("aria-disabled") == "true"


def test_hostile_texts_are_shown_as_they_are_and_nothing_runs(browser: Browser, tmp_path: Path) -> None:
    names = ("sample_id", "method", "concept", "prompt", "subject", "generated_image", "reference_image", "key", "note")
    lines = [
        {name: f"{text} {name} {number}" for name in names}
        | {"cp": number / 10, "error": text if number % 3 == 0 else "", text[:50].split("\n")[0]: text}
        for number, text in enumerate(HOSTILE)
    ]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    scores = write_csv(tmp_path / "<b>scores'\".csv", [dict.fromkeys(columns, "") | line for line in lines], columns)
    settings = {"settings": {"model": HOSTILE[0], HOSTILE[1]: HOSTILE[2]}, "undefined": {"cp": 0}}
    scores.with_name("<b>scores'\".summary.json").write_text(json.dumps(settings))
    out = tmp_path / "report.html"
    assert main(["report", str(scores), "--out", str(out), "--maps", "0", "--quiet"]) == 0
    browser.errors()
    browser.addresses()
    browser.open(out)
    expected = [" ".join(f"{text} sample_id {number}".split())[:10_000] for number, text in enumerate(HOSTILE)]
    assert [" ".join(text.split())[:10_000] for text in browser.column()] == expected
    browser.all("#table .open")[0].click()
    for _ in HOSTILE:
        browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert browser.execute_script("return window.ran") is None
    assert browser.execute_script("return document.querySelectorAll('svg[onload], img[src=x], b b').length") == 0
    assert browser.execute_script("return [...document.scripts].filter(each => each.type === '').length") == 1
    assert "49" not in browser.one("h1").text
    assert browser.title == "<b>scores'\".csv - masc_metrics"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 1280
    assert browser.errors() == []
    assert browser.addresses() == {out.as_uri()}
    # A script that gets into the page all the same is refused by its policy.
    browser.execute_script(
        "const s = document.createElement('script'); s.text = 'window.ran = 1'; document.body.append(s)"
    )
    assert browser.execute_script("return window.ran") is None
    assert any("Content Security Policy" in error for error in browser.errors())


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("training") / "training.html"
    for step, value, shade in ((500, 0.2, 40), (1000, 0.5, 120), (2000, 0.4, 220)):
        scores = {"cat": [value, value + 0.1], "dog": [value + 0.2, value + 0.3]}
        add_to_report(validation(scores, shade=shade), file, step)
    return file


def test_the_slider_goes_through_the_steps_of_a_training(browser: Browser, training: Path) -> None:
    browser.open(training)
    assert browser.one("#step-name").text == "step 2,000 (3 of 3)"
    assert [each.text for each in browser.all(".concept h4")] == ["cat", "dog"]
    last = browser.all(".shots img")[0].get_attribute("src")
    assert browser.line(".shots .scores") == "CP 0.400 +0.200 PF 0.200 +0.100"
    browser.one("#step").send_keys(Keys.ARROW_LEFT)
    assert browser.one("#step-name").text == "step 1,000 (2 of 3)"
    assert browser.line(".shots .scores") == "CP 0.500 +0.300 PF 0.250 +0.150"
    assert browser.all(".shots img")[0].get_attribute("src") != last
    assert [" ".join(each.text.split()) for each in browser.all("#curves .key")] == [
        "mean CP 0.650 PF 0.325",
        "cat CP 0.550 PF 0.275",
        "dog CP 0.750 PF 0.375",
    ]
    browser.one("#step-back").click()
    assert browser.line(".shots .scores") == "CP 0.200 PF 0.100"
    assert browser.one("#step-back").get_attribute("aria-disabled") == "true"


def test_a_click_on_a_curve_chooses_the_nearest_step(browser: Browser, training: Path) -> None:
    browser.open(training)
    script = """
        const chart = document.querySelector('.chart svg'), box = chart.getBoundingClientRect();
        const at = { clientX: box.left + arguments[0] * box.width, clientY: box.top + 40, bubbles: true };
        chart.dispatchEvent(new MouseEvent('click', at));
    """
    for part, step in ((0.1, "step 500"), (0.4, "step 1,000"), (0.99, "step 2,000")):
        browser.execute_script(script, part)
        assert browser.one("#step-name").text.startswith(step)


def test_a_chosen_concept_stands_out_and_keeps_the_focus(browser: Browser, training: Path) -> None:
    browser.open(training)
    browser.all("#curves .key")[2].send_keys(Keys.ENTER)
    assert browser.switch_to.active_element.text.startswith("dog")
    assert browser.switch_to.active_element.get_attribute("aria-pressed") == "true"
    assert len(browser.all("path.curve.faint")) == 2, "the cat, in both charts"
    assert browser.one(".anchor ~ .tick").text == "ceiling"


def test_an_image_opens_with_the_same_image_of_other_steps(browser: Browser, training: Path) -> None:
    browser.open(training)
    browser.all("button.both")[1].click()
    assert browser.one("#sample-title").text == "1 step 2000"
    assert browser.one("#sample-place").text == "3 of 3"
    browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert browser.one("#sample-title").text == "1 step 1000"


def test_changes_are_those_of_the_same_image_with_the_same_settings(browser: Browser, tmp_path: Path) -> None:
    """Two images of one prompt and seed, and another dtype from the third step on."""
    file = tmp_path / "training.html"
    for step, cp, dtype in ((1, 0.2, "float32"), (2, 0.3, "float32"), (3, 0.9, "bfloat16"), (4, 0.8, "bfloat16")):
        add_to_report(
            validation({"cat": [cp, 0.5]}, prompts=("asleep", "asleep"), settings={"dtype": dtype}), file, step
        )
    browser.open(file)
    found = []
    for _ in range(4):
        found.append([" ".join(each.text.split()[:3]) for each in browser.all(".shots .scores")])
        browser.one("#step").send_keys(Keys.ARROW_LEFT)
    assert found == [
        ["CP 0.800 −0.100", "CP 0.500 +0.000"],  # noqa: RUF001  # the page has a minus sign
        ["CP 0.900 PF", "CP 0.500 PF"],
        ["CP 0.300 +0.100", "CP 0.500 +0.000"],
        ["CP 0.200 PF", "CP 0.500 PF"],
    ]
    assert [
        browser.execute_script("return arguments[0].getAttribute('d')", each).count("M")
        for each in browser.all(".chart path.mean")
    ] == [2, 2]


def test_a_training_without_panels_has_no_images(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "training.html"
    add_to_report(replace(validation({"cat": [0.5, 0.5]}), shown=()), file, 1)
    browser.open(file)
    assert browser.one("#step-images").text == "There are no images, because the validations drew no panel."
    assert "mean over the images of the one concept" in browser.one("#training").text


@pytest.mark.parametrize(("width", "phone"), [(1280, False), (360, True)])
def test_hostile_concepts_of_a_training_do_nothing(width: int, phone: bool, browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "training.html"
    for step in (1, 2):
        scores = {text: [0.1, 0.1 * step] for text in HOSTILE}
        settings = {"model": HOSTILE[0], "dtype": HOSTILE[step]}
        add_to_report(validation(scores, prompts=HOSTILE[:2], settings=settings), file, step)
    browser.errors()
    browser.addresses()
    browser.open(file, width=width, phone=phone)
    for selector in ("#step-back", "#curves .key:last-child", "button.both"):
        browser.execute_script("arguments[0].click()", browser.one(selector))
    assert browser.execute_script("return window.ran") is None
    assert len(browser.all(".concept")) == len(HOSTILE)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.errors() == []
    assert browser.addresses() == {file.as_uri()}
