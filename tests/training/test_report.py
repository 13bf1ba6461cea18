"""The report of a run, as text; a browser looks at it in tests/browser/test_report.py."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.training.made_up_run import CAPTION, HOSTILE, made_up_report
from training.metrics_log import METRICS_FILE, MetricsLog
from training.report import REPORT_FILE
from training.report_stage import StageView, Table

EMPTY = {"meta", "link", "img", "input"}  # elements that have no end


class Page(HTMLParser):
    """Reads a page, and fails where tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert [] == self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """The page of a run that is going on."""
    made_up_report(tmp_path).write("running")
    return Page((tmp_path / REPORT_FILE).read_text("utf-8"))


def test_names_of_users_are_text(page: Page) -> None:
    """A class, path, warning or setting that looks like a script is shown, and is none; an
    attribute cannot be broken out of."""
    assert 1 == len(page.all("script"))
    assert all("onmouseover" not in attributes for _, attributes in page.elements)
    text = "".join(page.text)
    for part in ("data '", "name: ", "pictures/", "generator ", "step 100: "):
        assert f"{part}{HOSTILE}" in text
    assert f'{HOSTILE}, cat" onmouseover="alert(2)' in text
    assert f"{HOSTILE}.png\tOSError: broken" in text


def test_page_loads_nothing(page: Page, tmp_path: Path) -> None:
    """Whatever has an address has it inside; no style reaches out either."""
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "xlink:href")
    ]
    assert len(addresses) >= 5
    assert all(value and value.startswith("data:") for value in addresses)
    text = (tmp_path / REPORT_FILE).read_text("utf-8")
    assert not re.search(r"https?://|url\(|@import", text)


def test_page_shows_what_was_measured(page: Page) -> None:
    """Step, time left, pace, memory, the best value, curves, sheets and the held-out table."""
    text = re.sub(r"\s+", " ", " ".join(page.text))
    for shown in (
        "300 of 400", "time left 50s", "250 2% waiting for data", "600 MB", "abacus",
        "best bit loss 0.1498 at step 300", "0–25 % hidden", "step 300 (best)", "loss, step 0",
    ):  # fmt: skip
        assert shown in text
    assert 4 == len(page.all("img"))
    assert f"{CAPTION}, step 300" == page.all("img")[-1]["alt"]
    assert {"max": "3", "value": "3"}.items() <= page.all("input")[0].items()
    said = [attributes["aria-label"] for attributes in page.all("svg") if "role" in attributes]
    assert "Loss of a bit, in nats, step 10 to 300: training batch from 0.6429 to 0.1299" in (
        said[0] or ""
    )


def test_a_stage_that_has_not_begun_is_left_out(page: Page) -> None:
    """The page has a bar for the generator and none for the tokenizer."""
    assert ["Steps of the generator"] == [bar["aria-label"] for bar in page.all("progress")]


def test_page_is_written_whole(tmp_path: Path) -> None:
    """A page takes the place of the one before it, and nothing is left beside it."""
    report = made_up_report(tmp_path)
    report.write("running")
    report.write("finished", "the model is in <here>")
    page = Page((tmp_path / REPORT_FILE).read_text("utf-8"))
    assert "finished" in page.text
    assert "the model is in <here>" in "".join(page.text)
    assert [] == [path for path in tmp_path.iterdir() if "draft" in path.name]


def test_sheets_of_forgotten_steps_are_not_shown(tmp_path: Path) -> None:
    """After a resume at step 200 the sheet of step 300 is there, and yet to come."""
    report = made_up_report(tmp_path)
    MetricsLog(tmp_path / "generator" / METRICS_FILE).forget_after(200)
    report.write("running")
    page = Page((tmp_path / REPORT_FILE).read_text("utf-8"))
    assert ["step 0", "step 100", "step 200"] == [
        f["data-name"] for f in page.all("figure") if "data-name" in f
    ]


def test_rows_of_older_runs_are_read() -> None:
    """Rows without pace, memory or quarters give figures and curves; one row gives no time left."""
    rows = [
        {"step": 0, "split": "held_out", "l2": 0.5, "psnr": 9.0, "elapsed_s": 1.0},
        {"step": 10, "split": "train", "l2": 0.4, "loss": 0.5, "elapsed_s": 2.0},
    ]
    view = StageView("tokenizer", 20, "l2", "", rows)
    names = [name for name, _, _ in view.figures()]
    assert ["step", "time left", "time taken", "best l2"] == names
    assert view.seconds_left() is None
    assert 3 == len(view.charts())
    measured = [("Squared error", [0.5]), ("PSNR, in dB", [9.0])]
    assert Table("Held out", ["step 0 (best)"], measured) == view.table()
    assert view.quarters() is None
