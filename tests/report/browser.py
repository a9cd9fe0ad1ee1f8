"""Chromium without a window, through Selenium, asked the way these tests ask."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.actions.action_builder import ActionBuilder

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
AVAILABLE = CHROMIUM is not None and CHROMEDRIVER is not None
BOX = (
    "const e = document.querySelector(arguments[0]); if (!e) return null;"
    "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
    "return [b.left, b.top, b.width, b.height]"
)


class Browser:
    """One page of a browser; a context manager.

    Args:
        profile: an empty folder for the browser's own files.
        size: width and height of the window.
    """

    def __init__(self, profile: Path, size: tuple[int, int] = (1440, 1000)):
        options = ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in (
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--hide-scrollbars", "--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync", f"--user-data-dir={profile}"),
            f"--window-size={size[0]},{size[1]}",
        ):
            options.add_argument(argument)
        downloads = {"download.default_directory": str(profile / "downloads")}
        options.add_experimental_option("prefs", downloads)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.downloads = profile / "downloads"
        self.size = size
        self._counts_cpu = False
        self._driver = Chrome(options=options, service=ChromeService(str(CHROMEDRIVER)))

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._driver.quit()

    def open(self, url: str) -> None:
        self._driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page; ``return`` gives a value back."""
        return self._driver.execute_script(script, *arguments)

    def run_async(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript that hands its value to its last argument, a function."""
        return self._driver.execute_async_script(script, *arguments)

    def cpu_seconds(self) -> float:
        """CPU time that the page's own thread has used, which other processes don't lengthen."""
        if not self._counts_cpu:
            self._driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
            self._counts_cpu = True
        metrics = self._driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return next(one["value"] for one in metrics if one["name"] == "TaskDuration")

    def wait(self, script: str, *arguments: Any, seconds: float = 60) -> Any:
        """Wait until JavaScript returns something true, and return it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = self.run(script, *arguments)
            if value:
                return value
            time.sleep(0.05)
        raise TimeoutError(f"never became true: {script}; messages: {self.messages()}")

    def click(self, selector: str, at: tuple[float, float] = (0.5, 0.5)) -> None:
        """Click an element as a user does: in its middle, or at a share of width and height."""
        self.wait("return document.querySelector(arguments[0]) !== null", selector)
        mouse = ActionBuilder(self._driver, duration=0)
        mouse.pointer_action.move_to_location(*self._place(selector, at)).click()
        mouse.perform()

    def drag(self, selector: str, start: tuple[float, float], stop: tuple[float, float]) -> None:
        """Press at one share of an element's width and height, release at another."""
        (xa, ya), (xb, yb) = self._place(selector, start), self._place(selector, stop)
        mouse = ActionBuilder(self._driver, duration=0)
        pointer = mouse.pointer_action
        pointer.move_to_location(xa, ya).pointer_down()
        pointer.move_to_location((xa + xb) // 2, (ya + yb) // 2).move_to_location(xb, yb)
        pointer.pointer_up()
        mouse.perform()

    def point_at(self, selector: str) -> None:
        """Move the pointer onto an element."""
        mouse = ActionBuilder(self._driver, duration=0)
        mouse.pointer_action.move_to_location(*self._place(selector, (0.5, 0.5)))
        mouse.perform()

    def press(self, *keys: str) -> None:
        """Press keys one after another where the focus is: ``"ARROW_RIGHT"``, or ``"a"``."""
        chain = ActionChains(self._driver, duration=0)
        for key in keys:
            chain.send_keys(getattr(Keys, key, key))
        chain.perform()

    def type(self, selector: str, text: str) -> None:
        """Put text into a field, as typing does."""
        self.run(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input', {bubbles: true}))",
            selector,
            text,
        )

    def resize(self, width: int, height: int) -> None:
        """Make the window so large, its frame included."""
        self._driver.set_window_rect(width=width, height=height)
        self.size = width, height

    def downloaded(self, name: str, seconds: float = 30) -> Path:
        """A file that the page has saved, once it is whole."""
        path = self.downloads / name
        deadline = time.monotonic() + seconds
        while not path.is_file():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} was not saved")
            time.sleep(0.05)
        return path

    def screenshot(self, path: Path) -> Path:
        self._driver.save_screenshot(str(path))
        return path

    def messages(self) -> list[str]:
        """Warnings and errors in the browser's log since the last call."""
        log = self._driver.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] in ("SEVERE", "WARNING")]

    def _place(self, selector: str, share: tuple[float, float]) -> tuple[int, int]:
        """A point of an element, in the window, once it has been scrolled into view."""
        box = self.run(BOX, selector)
        return int(box[0] + share[0] * box[2]), int(box[1] + share[1] * box[3])
