"""A browser for tests: headless Chromium over its debugging protocol, by aiohttp's client of websockets."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 60.0  # seconds
KEYS = {
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Enter": 13,
    "Tab": 9,
    "Escape": 27,
    "Home": 36,
    "End": 35,
}


class Page:
    """A page in the browser, with its errors and its requests.

    Attributes:
        errors: exceptions and entries of the console.
        requests: requested addresses, without those in the page itself.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self._socket = socket
        self._number = 0
        self._answers: dict[int, asyncio.Future] = {}
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.loaded = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol; returns its result."""
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        return await asyncio.wait_for(answer, PATIENCE)

    async def open(self, path: Path, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Open a file and wait until it is drawn."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.send(f"{domain}.enable")
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        await self.send("Emulation.setFocusEmulationEnabled", enabled=True)  # or focus fires no event
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.send("Emulation.setEmulatedMedia", features=scheme)
        self.loaded.clear()
        await self.send("Page.navigate", url=path.resolve().as_uri())
        await asyncio.wait_for(self.loaded.wait(), PATIENCE)
        await asyncio.sleep(0.3)

    async def reload(self) -> None:
        """Load the page again and wait until it is drawn."""
        self.loaded.clear()
        await self.send("Page.reload")
        await asyncio.wait_for(self.loaded.wait(), PATIENCE)
        await asyncio.sleep(0.3)

    async def run(self, script: str) -> Any:
        """Evaluate an expression in the page."""
        answer = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def press(self, key: str) -> None:
        """Press a key of the keyboard."""
        code = KEYS.get(key, ord(key[0].upper()))
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        for kind, more in (("keyDown", text), ("keyUp", {})):
            await self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    async def point(self, x: float, y: float, click: bool = False) -> None:
        """Move the mouse to a point, and click if `click` is set."""
        await self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def click(self, element: str) -> None:
        """Click the middle of an element, given by an expression, once it rests in the middle of the window.

        What is drawn when it comes into view moves what lies below it.
        """
        middle = await self.run(
            f"(async () => {{ const element = {element};"
            "const frames = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));"
            "let last = null;"
            "for (;;) { element.scrollIntoView({block: 'center', behavior: 'instant'}); await frames();"
            "const box = element.getBoundingClientRect();"
            "const middle = [box.x + box.width / 2, box.y + box.height / 2];"
            "const is_seen = element.contains(document.elementFromPoint(...middle));"
            "if (is_seen && last !== null && last[0] === middle[0] && last[1] === middle[1]) return middle;"
            "last = middle; } })()"
        )
        await self.point(*middle, click=True)

    async def picture(self, path: Path) -> None:
        """Save the visible part of the page as PNG."""
        shot = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    async def close(self) -> None:
        self._reader.cancel()
        await self._socket.close()

    async def _read(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            if "id" in event:
                answer = self._answers.pop(event["id"])
                if "error" in event:
                    answer.set_exception(AssertionError(str(event["error"])))
                else:
                    answer.set_result(event["result"])
                continue
            self._record(event["method"], event["params"])

    def _record(self, method: str, parameters: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self.loaded.set()
        elif method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith("data:"):
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.errors.append(str(parameters["entry"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.errors.append(str(parameters["args"]))


def in_chromium(folder: Path, work: Callable[[Page], Awaitable[None]]) -> None:
    """Do something in a fresh browser, whose own files lie in a folder; downloads go there too."""
    assert CHROMIUM is not None
    folder.mkdir(parents=True, exist_ok=True)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={folder / 'profile'}",
    ]
    with open(folder / "chromium.log", "wb") as log:
        browser = subprocess.Popen([*command, "--remote-debugging-port=0", "about:blank"], stdout=log, stderr=log)
        try:
            asyncio.run(_with_page(folder, work))
        finally:
            browser.kill()
            browser.wait()


def check_page(folder: Path, html: Path, work: Callable[[Page], Awaitable[None]], **options: Any) -> None:
    """Open a page, do something with it, and assert that it requested nothing else and reported no error."""

    async def whole(page: Page) -> None:
        await page.open(html, **options)
        assert await page.run("document.documentElement.dataset.ready") == "true"
        await work(page)
        assert page.errors == []
        assert set(page.requests) == {html.resolve().as_uri()}

    in_chromium(folder, whole)


async def wait_for_file(path: Path) -> Path:
    """Wait for a download."""
    for _ in range(200):
        if path.exists():
            return path
        await asyncio.sleep(0.05)
    raise AssertionError(f"{path} was not downloaded")


async def _with_page(folder: Path, work: Callable[[Page], Awaitable[None]]) -> None:
    file = folder / "profile" / "DevToolsActivePort"
    until = time.monotonic() + PATIENCE
    while not (file.exists() and file.read_text().strip()):
        if time.monotonic() > until:
            raise AssertionError(f"Chromium does not start: {(folder / 'chromium.log').read_text()[-2000:]}")
        await asyncio.sleep(0.05)
    port = file.read_text().split()[0]
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            targets = await answer.json()
        address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
        page = Page(await session.ws_connect(address, max_msg_size=0))
        try:
            await page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder.resolve()))
            await work(page)
        finally:
            await page.close()
