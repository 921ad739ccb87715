"""What every page must be in a real browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def require_page_alone(browser: Any, page_file: Path, *, scheme: str, width: int) -> None:
    """No script error, no request, nothing that overflows, and the colours asked for."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
    page, errors, requests = context.new_page(), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    assert errors == []
    assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    shades = [int(part) for part in re.findall(r"\d+", paper)]
    assert (max(shades) < 60) if scheme == "dark" else (min(shades) > 200)
    outside = page.evaluate(
        """[...document.querySelectorAll("svg")].flatMap(svg => {
             const box = svg.getBoundingClientRect();
             return [...svg.querySelectorAll("text")].filter(text => {
               const own = text.getBoundingClientRect();
               return own.left < box.left - 1 || own.right > box.right + 1;
             }).map(text => text.textContent);
           })"""
    )
    assert outside == []
    context.close()
