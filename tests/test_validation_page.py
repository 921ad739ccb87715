"""The report in a real browser: no script error, no request, nothing that overflows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pages import require_page_alone

from riskmtl import MultiTaskClassifier
from riskmtl.schema import Split
from riskmtl.validation import Settings, validate


@pytest.fixture(scope="module")
def page_file(
    trained: MultiTaskClassifier, parts: Split, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    settings = Settings(explained_rows=30, protected=("gender",), min_events=5)
    report = validate(trained, parts.test, reference=parts.train, settings=settings)
    return report.write(tmp_path_factory.mktemp("page"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_stands_alone_and_fits(
    browser: Any, page_file: Path, scheme: str, width: int
) -> None:
    require_page_alone(browser, page_file, scheme=scheme, width=width)


def test_it_can_be_read_without_script_and_sorted_with_it(browser: Any, page_file: Path) -> None:
    silent = browser.new_context(java_script_enabled=False)
    page = silent.new_page()
    page.goto(page_file.as_uri())
    assert page.locator("section").count() == 12
    assert page.locator("h2").first.is_visible()
    silent.close()
    context = browser.new_context()
    page = context.new_page()
    page.goto(page_file.as_uri())
    table = page.locator("#data table.sortable").nth(1)
    button = table.locator("th button", has_text="auc")
    column = 4
    cells = f"tbody tr td:nth-child({column})"
    button.focus()
    page.keyboard.press("Enter")
    values = [float(text) for text in table.locator(cells).all_inner_texts()]
    assert values == sorted(values)
    assert values != sorted(values, reverse=True)
    context.close()


def test_every_picture_has_words(page_file: Path) -> None:
    page = page_file.read_text()
    pictures = re.findall(r"<svg role=\"img\".*?</svg>", page, re.S)
    assert len(pictures) > 10
    for picture in pictures:
        assert re.search(r"<title id=\S+>\S", picture)
        assert re.search(r"<desc id=\S+>\S", picture)
        assert "nan" not in re.sub(
            r"<text.*?</text>|<title.*?</title>|<desc.*?</desc>", "", picture
        )
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_it_prints_on_a4(browser: Any, page_file: Path, tmp_path: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 680, "height": 1000})  # A4 less its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 680
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    context.close()
