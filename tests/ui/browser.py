"""A headless Chromium, driven by WebDriver's own JSON over HTTP: no package needed."""

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eridiff.flowserver import free_port
from tests.processes import begin

SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # WebDriver's name of an element's reference


def missing() -> str | None:
    """Why no browser can be driven here; None where it can."""
    names = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(names)} not found: apt install chromium chromium-driver" if names else None


class Browser:
    """One session: pages are opened, waited for, clicked and drawn."""

    def __init__(self, url: str, session: str) -> None:
        self.base = f"{url}/session/{session}"

    def open(self, url: str) -> None:
        """Go to a page."""
        call(f"{self.base}/url", {"url": url})

    def url(self) -> str:
        """Where the browser is."""
        return str(call(f"{self.base}/url"))

    def script(self, code: str, *arguments: Any) -> Any:
        """What JavaScript code returns."""
        return call(f"{self.base}/execute/sync", {"script": code, "args": list(arguments)})

    def text(self) -> str:
        """All words of the page that are shown."""
        return str(self.script("return document.body.innerText"))

    def find(self, css: str, words: str = "") -> Any:
        """The first shown element of a CSS selector that holds some words; None where there is none."""
        code = (
            "return [...document.querySelectorAll(arguments[0])].find("
            "e => e.innerText !== undefined && e.innerText.includes(arguments[1]) && e.offsetParent !== null) || null"
        )
        return self.script(code, css, words)

    def wait(self, css: str, words: str = "", seconds: float = 40) -> Any:
        """The element, once it is there."""
        end = time.monotonic() + seconds
        while (found := self.find(css, words)) is None:
            assert time.monotonic() < end, f"no {css!r} with {words!r} within {seconds} s; the page says: {self.text()}"
            time.sleep(0.2)
        return found

    def click(self, css: str, words: str = "", seconds: float = 40) -> None:
        """Press an element, once it is there; again where the page drew it anew meanwhile, or something lay over it."""
        end = time.monotonic() + seconds
        while True:
            element = self.wait(css, words, seconds)
            try:
                self.script("arguments[0].scrollIntoView({block: 'center'})", element)
                call(f"{self.base}/element/{element[ELEMENT]}/click", {})
                return
            except urllib.error.HTTPError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def type(self, element: Any, text: str) -> None:
        """Press keys in an element."""
        call(f"{self.base}/element/{element[ELEMENT]}/value", {"text": text})

    def png(self) -> bytes:
        """What is seen, as a PNG."""
        return base64.b64decode(call(f"{self.base}/screenshot"))


def call(url: str, body: Any = None) -> Any:
    """One request of WebDriver; its answer's value."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["value"]


@contextmanager
def browser(
    profile: Path, size: tuple[int, int] = (1360, 900), names: Mapping[str, str] | None = None
) -> Iterator[Browser]:
    """A browser with a fresh profile folder, a window of a size (width, height), and names that lead to addresses."""
    port = free_port()
    driver = begin(["chromedriver", f"--port={port}", "--silent"], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for_driver(url)
        switches = [*SWITCHES, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
        if names:
            rules = ",".join(f"MAP {name} {address}" for name, address in names.items())
            switches.append(f"--host-resolver-rules={rules}")
        options = {"goog:chromeOptions": {"binary": shutil.which("chromium"), "args": switches}}
        session = call(f"{url}/session", {"capabilities": {"alwaysMatch": options}})["sessionId"]
        window = Browser(url, session)
        try:
            yield window
        finally:
            urllib.request.urlopen(urllib.request.Request(window.base, method="DELETE"), timeout=30).close()
    finally:
        driver.terminate()
        driver.wait(20)


def wait_for_driver(url: str) -> None:
    """Return once chromedriver answers."""
    end = time.monotonic() + 20
    while True:
        try:
            call(f"{url}/status")
            return
        except OSError:
            assert time.monotonic() < end, "chromedriver did not start"
            time.sleep(0.1)
