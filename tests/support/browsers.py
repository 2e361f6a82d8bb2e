"""Headless Chromium for tests that look at pages; where there is none, they are skipped."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Starts Chromium, as Playwright's browser."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs the extra browser (pip install -e '.[browser]')"
    )
    if not CHROMIUM:
        pytest.skip("no Chromium is installed on this machine")
    with playwright.sync_playwright() as tools:
        try:
            # As root, and in a container with little shared memory.
            switches = ["--no-sandbox", "--disable-dev-shm-usage"]
            browser = tools.chromium.launch(executable_path=CHROMIUM, args=switches)
        except playwright.Error as error:
            pytest.skip(f"{CHROMIUM} does not start here: {error}")
        yield browser
        browser.close()
