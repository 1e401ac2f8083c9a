"""A headless Chromium that asks nobody but this machine, for tests and for pictures"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalai_nb.bench.jupyter.visits import FLAGS, NAMES

CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), "")


@dataclass
class Visit:
    "A page of a fresh profile, and what went wrong on it"

    page: Any  # playwright's
    outside: list[str] = field(default_factory=list)  # requests that were refused
    errors: list[str] = field(default_factory=list)  # of scripts, and of the console


@contextmanager
def visiting(
    *allowed: str,  # how the addresses begin that may be asked; all others are refused
    width: int = 1180,  # pixels of the window
    height: int = 800,
) -> Iterator[Visit]:
    "Open a page as long as the block lasts"
    from playwright.sync_api import sync_playwright

    def route(route: Any) -> None:
        if route.request.url.startswith(allowed):
            return route.continue_()
        visit.outside.append(route.request.url)
        route.abort()

    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser,
    ):
        visit = Visit(browser.new_page(viewport={"width": width, "height": height}))
        visit.page.route("**/*", route)
        visit.page.on("pageerror", lambda e: visit.errors.append(str(e)))
        visit.page.on("console", lambda m: m.type == "error" and visit.errors.append(_told(m)))
        yield visit


def _told(message: Any) -> str:
    "What the console says of an error; of an answer that failed also whose"
    if message.text.startswith("Failed to load resource"):
        return f"{message.text}: {message.location['url']}"
    return message.text


def faults(
    page: Any,  # playwright's
    axe: Path,  # the folder `bin` of `conftest.tool("axe")`
    part: str = "html",  # which part of the page, as a CSS selector
) -> list[str]:
    "What axe-core finds serious or critical on a page, a line each"
    script = next(axe.parent.rglob("axe.min.js")).read_text(encoding="utf-8")
    page.evaluate(script)
    found = page.evaluate("part => axe.run(part)", part)
    assert found["passes"]
    return [
        f"{v['id']}: {v['nodes'][0]['html']}"
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]
