"""A page as a reader sees it: opened in headless Chromium, which is spoken to over a pair of pipes.

The protocol is https://chromedevtools.github.io/devtools-protocol/: JSON messages, each ended by a zero byte.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 60
# A sandbox needs rights that a container seldom gives; nothing but a page of ours is opened.
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip
# Chromium reads from the third and writes to the fourth of its open files.
TO_BROWSER, FROM_BROWSER = 3, 4


def chromium() -> str | None:
    """The browser's program, where one is installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One open page; what went wrong in it is in `problems`, what it fetched from elsewhere in `fetched`."""

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers, self.number, self.session = commands, answers, 0, ""
        self.buffer = b""
        self.problems: list[str] = []
        self.fetched: list[str] = []
        self.events: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def open(self, place: Path | str, width: int = 390, dark: bool = False) -> None:
        """Open a file, or an address, on a screen so many pixels wide."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.events.clear()
        self.send("Page.navigate", url=place if isinstance(place, str) else place.resolve().as_uri())
        while "Page.loadEventFired" not in self.events:
            self._read()

    def tell(self, expression: str) -> Any:
        """What an expression in JavaScript comes to in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def image(self) -> bytes:
        """The whole page as PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def paper(self) -> bytes:
        """The page as it is printed: PDF on A4."""
        printed = self.send("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True)
        return base64.b64decode(printed["data"])

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"Chromium said nothing for {SECONDS} s"
            part = os.read(self.answers, 1 << 20)
            assert part, "Chromium has ended"
            self.buffer += part
        text, _, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, about: dict[str, Any]) -> None:
        self.events.append(event)
        if event == "Runtime.exceptionThrown":
            self.problems.append(str(about["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled":
            self.problems.append(str(about["args"]))
        elif event == "Log.entryAdded":
            self.problems.append(about["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            url = about["request"]["url"]
            if not url.startswith(("data:", "file:")):
                self.fetched.append(url)


@contextmanager
def opened(program: str, profile: Path) -> Iterator[Page]:
    """A browser with an empty page; its profile goes to a folder of its own."""
    command_out, command_in = os.pipe()
    answer_out, answer_in = os.pipe()

    def connect() -> None:
        # By way of higher numbers: the ends may have those numbers already.
        high = os.dup(command_out), os.dup(answer_in)
        os.dup2(high[0], TO_BROWSER)
        os.dup2(high[1], FROM_BROWSER)

    browser = subprocess.Popen(
        [program, *OPTIONS, f"--user-data-dir={profile}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=connect, close_fds=False,
    )  # fmt: skip
    os.close(command_out)
    os.close(answer_in)
    try:
        page = Page(command_in, answer_out)
        yield page
        page.session = ""
        page.send("Browser.close")
    finally:
        os.close(command_in)
        os.close(answer_out)
        browser.kill()
        browser.wait()
