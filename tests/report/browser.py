"""Chromium without a window, driven over the WebDriver protocol (W3C) with nothing but urllib."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
AVAILABLE = CHROMIUM is not None and CHROMEDRIVER is not None
_DOWN, _UP = ({"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp"))


class Browser:
    """One page of a browser; a context manager."""

    def __init__(self, profile: Path, size: tuple[int, int] = (1440, 1000), dark: bool = False):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._driver = subprocess.Popen(
            [str(CHROMEDRIVER), f"--port={port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._base = f"http://127.0.0.1:{port}"
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}",
            *(["--force-dark-mode"] if dark else []),
        ]
        options = {
            "binary": CHROMIUM,
            "args": arguments,
        }
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._call(
            "POST", "/session", {"capabilities": {"alwaysMatch": capabilities}}, patience=60
        )
        self._base += f"/session/{session['sessionId']}"

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(20)

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page; ``return`` gives a value back."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, *arguments: Any, seconds: float = 60) -> Any:
        """Wait until JavaScript returns something true, and return it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            value = self.run(script, *arguments)
            if value:
                return value
            time.sleep(0.05)
        raise TimeoutError(f"never became true: {script}; messages: {self.messages()}")

    def click(self, selector: str, at: tuple[float, float] | None = None) -> None:
        """Click an element as a user does: in its middle, or at a share of width and height."""
        box = self.wait(
            "const e = document.querySelector(arguments[0]); if (!e) return null;"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.left, b.top, b.width, b.height]",
            selector,
        )
        share = at or (0.5, 0.5)
        x, y = (int(box[i] + share[i] * box[i + 2]) for i in (0, 1))
        self._pointer(x, y, press=True)

    def drag(self, selector: str, start: tuple[float, float], stop: tuple[float, float]) -> None:
        """Press at one share of an element's width and height, release at another."""
        box = self.run(
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]",
            selector,
        )
        (xa, ya), (xb, yb) = (
            [round(box[i] + share[i] * box[i + 2]) for i in (0, 1)] for share in (start, stop)
        )
        self._act([_move(xa, ya), _DOWN, _move((xa + xb) // 2, (ya + yb) // 2), _move(xb, yb), _UP])

    def point_at(self, selector: str) -> None:
        """Move the pointer onto an element."""
        box = self.run(
            "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [b.left + b.width / 2, b.top + b.height / 2]",
            selector,
        )
        self._pointer(int(box[0]), int(box[1]), press=False)

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
        self._call("POST", "/window/rect", {"width": width, "height": height})

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))
        return path

    def messages(self) -> list[str]:
        """Warnings and errors in the browser's log since the last call."""
        log = self._call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in log if entry["level"] in ("SEVERE", "WARNING")]

    def _pointer(self, x: int, y: int, *, press: bool) -> None:
        self._act([_move(x, y), *([_DOWN, _UP] if press else [])])

    def _act(self, actions: list[dict[str, Any]]) -> None:
        pointer = {"type": "pointer", "id": "mouse", "actions": actions}
        self._call("POST", "/actions", {"actions": [pointer]})

    def _call(self, method: str, path: str, body: Any = None, patience: float = 0) -> Any:
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(
            self._base + path, data, {"Content-Type": "application/json"}, method=method
        )
        deadline = time.monotonic() + patience
        while True:
            try:
                with urllib.request.urlopen(request, timeout=180) as answer:
                    return json.load(answer)["value"]
            except urllib.error.HTTPError as error:
                raise RuntimeError(json.load(error)["value"]["message"]) from None
            except urllib.error.URLError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def _move(x: int, y: int) -> dict[str, Any]:
    return {"type": "pointerMove", "duration": 0, "x": x, "y": y, "origin": "viewport"}
