"""Photographs the site in a browser and measures what does not fit.

    python docs/photograph.py build/site build/photographs [PAGE ...]

opens each page with Chromium at 1300 and at 400 pixels' width, light and dark,
stores its picture at full height, and prints a list: words and pictures that
are cut or leave their box, blocks of code wider than their box at 1300 pixels,
broken names, text of too little contrast, files that are missing. A page is a
part of its path, such as `howto/` or `sinks`. With `--measure` no picture is
stored. CHROMIUM names the program.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


WIDTHS = (1300, 400)
THEMES = ("light", "dark")
# Pictures of higher pages come in parts: Chromium's textures end at 16384.
PART = 8000
MEASURE = Path(__file__).with_name("photograph.js").read_text()


class Browser:
    """Chromium, which reads and writes JSON over two pipes (3 and 4)."""

    def __init__(self, profile: str):
        to_read, self.to_write = os.pipe()
        self.to_hear, to_say = os.pipe()

        def number_pipes():
            # Above 4 first, so that neither is closed by the other's dup2.
            read, say = (os.dup(end) for end in (to_read, to_say))
            high = [os.dup2(end, 100 + end) for end in (read, say)]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.process = subprocess.Popen(
            [
                os.environ.get("CHROMIUM", "chromium"),
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--allow-file-access-from-files",
                "--remote-debugging-pipe",
                f"--user-data-dir={profile}",
            ],
            preexec_fn=number_pipes,
            close_fds=False,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_say)
        self.count, self.rest, self.session = 0, b"", None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")
        self.session = self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            data = os.read(self.to_hear, 1 << 20)
            if not data:
                raise RuntimeError("Chromium ended.")
            self.rest += data
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def evaluate(self, expression: str) -> Any:
        answer = self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def size(self, width: int, height: int):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def theme(self, name: str):
        feature = {"name": "prefers-color-scheme", "value": name}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        for _ in range(20):
            time.sleep(0.2)
            if self.evaluate("document.documentElement.dataset.theme") == name:
                break
        time.sleep(0.3)  # Colors change slowly.

    def open(self, path: Path):
        """Loads a page, and its lazy pictures."""
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if self.evaluate("document.readyState") == "complete":
                break
            time.sleep(0.1)
        self.evaluate("""Promise.race([
            Promise.all([...document.images].map(image => {
                image.loading = "eager";
                return image.decode().catch(() => 0);
            })),
            new Promise(done => setTimeout(done, 5000)),
        ]).then(() => new Promise(done => setTimeout(done, 300)))""")

    def failures(self) -> Iterator[str]:
        """What did not load or raised, since the page was opened."""
        urls = {}
        for event in self.events:
            params = event.get("params", {})
            match event.get("method"):
                case "Network.requestWillBeSent":
                    urls[params["requestId"]] = params["request"]["url"]
                case "Network.loadingFailed":
                    url = urls.get(params["requestId"], "?")
                    yield f"not loaded: {url} ({params['errorText']})"
                case "Runtime.exceptionThrown":
                    details = params["exceptionDetails"]
                    what = details.get("exception", {}).get("description")
                    yield f"script: {what or details['text']}"

    def picture(self, path: Path):
        width, height = self.evaluate(
            "[innerWidth, document.documentElement.scrollHeight]"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        for part, top in enumerate(range(0, height, PART)):
            shot = self.call(
                "Page.captureScreenshot",
                captureBeyondViewport=True,
                clip={
                    "x": 0,
                    "y": top,
                    "width": width,
                    "height": min(PART, height - top),
                    "scale": 1,
                },
            )
            name = path.with_suffix(f".{part}.png" if part else ".png")
            name.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        self.call("Browser.close")
        self.process.wait(timeout=30)


def pages(site: Path, parts: list[str]) -> list[Path]:
    """The pages of a site, without the listings of sources."""
    found = [
        path
        for path in sorted(site.rglob("*.html"))
        if path.relative_to(site).parts[0] not in ("_modules", "_static")
    ]
    return [
        path
        for path in found
        if not parts or any(p in str(path.relative_to(site)) for p in parts)
    ]


def main() -> int:
    """Photographs and measures; 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("pages", nargs="*")
    parser.add_argument("--measure", action="store_true")
    args = parser.parse_args()
    found = pages(args.site, args.pages)
    count = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        for path in found:
            page = path.relative_to(args.site).with_suffix("")
            for width in WIDTHS:
                browser.size(width, 900)
                browser.open(path)
                faults = list(browser.failures())
                for theme in THEMES:
                    browser.theme(theme)
                    faults += browser.evaluate(f"({MEASURE})({theme!r})")
                    if not args.measure:
                        picture = args.out / f"{width}-{theme}" / page
                        browser.picture(picture.with_suffix(".png"))
                for fault in dict.fromkeys(faults):
                    print(f"{page} {width}: {fault}", flush=True)
                count += len(dict.fromkeys(faults))
        browser.close()
    print(f"{len(found)} pages, {count} faults")
    return min(count, 1)


if __name__ == "__main__":
    sys.exit(main())
