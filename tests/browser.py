"""The system's Chromium, offline, for pages that must work from disk; nothing is downloaded."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def open_browser(width: int = 1280, height: int = 800, expected: str = "\0") -> Iterator[Any]:
    """A browser context without a network; skips without a browser.

    What its pages write to the console as an error fails the test, unless it contains ``expected``.
    """
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium's own does not work for root
    errors = []
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=sandbox)
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True, accept_downloads=True)
        context.on("weberror", lambda error: errors.append(str(error.error)))
        context.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        yield context
        browser.close()
    assert [error for error in errors if expected not in error] == []


def assert_not_blank(screenshot: Path, least: int = 50) -> None:
    """At least ``least`` colours, and none that fills nearly all."""
    with Image.open(screenshot) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(np.int32)
    _, counts = np.unique(pixels @ np.array([1 << 16, 1 << 8, 1]), return_counts=True)
    assert len(counts) >= least
    assert counts.max() < 0.97 * counts.sum()
