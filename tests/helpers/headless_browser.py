"""Open a page in headless Chromium, which is controlled over a pair of pipes.

The protocol is https://chromedevtools.github.io/devtools-protocol/: JSON messages, each terminated by a zero byte.
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
# A sandbox needs privileges that containers rarely have; only our own pages are opened.
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip
# File descriptors that Chromium reads commands from and writes responses to.
TO_BROWSER, FROM_BROWSER = 3, 4


def chromium() -> str | None:
    """Return the path of the browser, or None where none is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """An open page; `problems` are its errors, `fetched` the external URLs that it requested."""

    def __init__(self, commands: int, responses: int) -> None:
        self.commands, self.responses, self.number, self.session = commands, responses, 0, ""
        self.buffer = b""
        self.problems: list[str] = []
        self.fetched: list[str] = []
        self.events: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def open(self, page: Path | str, width: int = 390, dark: bool = False) -> None:
        """Open a file or a URL on a screen of `width` pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.events.clear()
        self.send("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while "Page.loadEventFired" not in self.events:
            self._read()

    def evaluate(self, expression: str) -> Any:
        """Evaluate a JavaScript expression in the page."""
        response = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in response, response["exceptionDetails"]
        return response["result"].get("value")

    def screenshot(self) -> bytes:
        """Return the entire page as PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def pdf(self) -> bytes:
        """Print the page as PDF on A4."""
        printed = self.send("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True)
        return base64.b64decode(printed["data"])

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its response."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            response = self._read()
            if response.get("id") == self.number:
                assert "error" not in response, response["error"]
                result: dict[str, Any] = response["result"]
                return result

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.responses], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"Chromium sent nothing for {SECONDS} s"
            data = os.read(self.responses, 1 << 20)
            assert data, "Chromium has exited"
            self.buffer += data
        text, _, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._record(message.get("method", ""), message.get("params", {}))
        return message

    def _record(self, event: str, params: dict[str, Any]) -> None:
        self.events.append(event)
        if event == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled":
            self.problems.append(str(params["args"]))
        elif event == "Log.entryAdded":
            self.problems.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("data:", "file:")):
                self.fetched.append(url)


@contextmanager
def opened(program: str, profile: Path) -> Iterator[Page]:
    """Yield an empty page of a browser with its own profile."""
    command_out, command_in = os.pipe()
    response_out, response_in = os.pipe()

    def connect() -> None:
        # Via higher numbers, because the pipes' ends may have these numbers already.
        high = os.dup(command_out), os.dup(response_in)
        os.dup2(high[0], TO_BROWSER)
        os.dup2(high[1], FROM_BROWSER)

    browser = subprocess.Popen(
        [program, *OPTIONS, f"--user-data-dir={profile}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=connect, close_fds=False,
    )  # fmt: skip
    os.close(command_out)
    os.close(response_in)
    try:
        page = Page(command_in, response_out)
        yield page
        page.session = ""
        page.send("Browser.close")
    finally:
        os.close(command_in)
        os.close(response_out)
        browser.kill()
        browser.wait()
