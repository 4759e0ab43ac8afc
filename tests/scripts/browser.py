"""A headless browser for tests: Chromium through its driver, by the WebDriver protocol and nothing more."""

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request

import cv2
import numpy as np

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for a reference to an element
MISSING = "no chromium with chromedriver here; install them, on Debian: apt-get install chromium chromium-driver"
KEYS = {"left": "\ue012", "right": "\ue014", "home": "\ue011", "end": "\ue010", "tab": "\ue004"}


def installed():
    """Where browser and driver are, None where one is missing."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")
    return found if all(found) else None


class Browser:
    """One window without a network but this machine. Use it in a `with` block."""

    def __init__(self, size=(1000, 800), dark=False):
        program, driver = installed()
        self.driver = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.session = ""
        try:
            ready = next(line for line in self.driver.stdout if "started successfully on port" in line)
            self.address = f"http://127.0.0.1:{ready.rstrip().rstrip('.').split()[-1]}/session"
            flags = [
                "headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars",
                f"window-size={size[0]},{size[1]}", "force-device-scale-factor=1",
                "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                *(["blink-settings=preferredColorScheme=0"] if dark else []),
            ]  # fmt: skip
            options = {"binary": program, "args": flags}
            wishes = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            self.session = "/" + self._ask("POST", "", {"capabilities": {"alwaysMatch": wishes}})["sessionId"]
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        try:
            if self.session:
                self._ask("DELETE", "")
        finally:
            self.driver.kill()
            self.driver.wait()
            self.driver.stdout.close()

    def _ask(self, how, what, content=None):
        data = None if content is None else json.dumps(content).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + self.session + what, data, headers, method=how)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{what}: {json.load(error)['value']['message']}") from None

    def open(self, file):
        self._ask("POST", "/url", {"url": file.resolve().as_uri()})

    def visit(self, address):
        self._ask("POST", "/url", {"url": address})

    def resize(self, width, height):
        self._ask("POST", "/window/rect", {"width": width, "height": height})

    def screen(self, width, height):
        """Show the page as on a screen of this size, however small; a window is at least 500 wide."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        order = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        self._ask("POST", "/goog/cdp/execute", order)

    def type(self, selector, text):
        """Type a text into an element; into one for files, their paths."""
        self._ask("POST", f"/element/{self.find(selector)[ELEMENT]}/value", {"text": text})

    def click(self, selector):
        self._ask("POST", f"/element/{self.find(selector)[ELEMENT]}/click", {})

    def wait(self, script, *arguments, seconds=60):
        """Wait until a piece of JavaScript returns something true; returns it."""
        end = time.monotonic() + seconds
        while not (found := self.run(script, *arguments)):
            assert time.monotonic() < end, f"{script} {arguments}: not true after {seconds} s"
            time.sleep(0.1)
        return found

    def page(self):
        """What the window looks like, as a PNG file."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def run(self, script, *arguments):
        """What a piece of JavaScript returns; `arguments[0]` ... are its arguments."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector):
        return self._ask("POST", "/element", {"using": "css selector", "value": selector})

    def box(self, selector):
        """(left, top, width, height) in the window, once it has been scrolled to."""
        return self.run(
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
            "const r = e.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]",
            selector,
        )

    def drag(self, start, end, kind="mouse"):
        """Press at one point (x, y) of the window, move to another, let go; `kind` is mouse or touch."""
        moves = [{"type": "pointerMove", "duration": 0, "x": round(start[0]), "y": round(start[1])},
                 {"type": "pointerDown", "button": 0},
                 {"type": "pointerMove", "duration": 50, "x": round(end[0]), "y": round(end[1])},
                 {"type": "pointerUp", "button": 0}]  # fmt: skip
        pointer = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": moves}
        self._ask("POST", "/actions", {"actions": [pointer]})

    def press(self, selector, *keys):
        """Type keys, of KEYS, into an element that can take them."""
        reference = self.find(selector)[ELEMENT]
        self._ask("POST", f"/element/{reference}/value", {"text": "".join(KEYS[key] for key in keys)})

    def picture(self, selector):
        """What an element looks like, (H, W, 3) uint8 RGB."""
        png = base64.b64decode(self._ask("GET", f"/element/{self.find(selector)[ELEMENT]}/screenshot"))
        return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]

    def log(self):
        """What the page complained about."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]
