"""The page in a browser: upload, run, slider by mouse and keys, cancel, a broken file, wide and narrow screens.

PICTURES=docs/page pytest tests/scripts/test_demo_browser.py -k compared     makes the pictures of the documentation
"""

import importlib.util
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ldm import video
from tests.scripts import browser
from tests.scripts.test_demo import write_clip

pytestmark = pytest.mark.slow  # starts a server and runs the model
ROOT = Path(__file__).parents[2]
TEXT = "return document.querySelector(arguments[0]).innerText"
HAS = "return document.querySelector(arguments[0]).innerText.includes(arguments[1])"
INPUT = "#upload input[type=file]"
CLEAR = "#upload button[aria-label=Clear], #upload button[title=Clear]"
ABOUT = "document.querySelector('#about').innerText"
DIVIDER = ".compare input"
AT = "return parseInt(document.querySelector('.compare').style.getPropertyValue('--at'))"
SHOWN = "const e = document.querySelector('.compare img'); return e && e.alt === arguments[0]"
TOO_WIDE = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
PICTURES = os.environ.get("PICTURES")  # a folder for pictures of the page, such as docs/page
STOPPED = 143  # exit status after SIGTERM


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a page in a process of its own, which removes its temporary files at the end."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("no gradio here; make extras")
    folder = tmp_path_factory.mktemp("server")
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--port", "0", "--most_seconds", "5"]
    variables = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as server:
        yield server.stdout.readline().split()[0]
        assert list(folder.glob("mgld-vsr-demo-*"))
        server.terminate()
        assert server.wait(60) == STOPPED
    assert not list(folder.glob("mgld-vsr-demo-*"))


@pytest.fixture()
def window(address):
    with opened(address) as one:
        yield one


def opened(address):
    """A window that shows the page."""
    if browser.installed() is None:
        pytest.skip(browser.MISSING)
    one = browser.Browser(size=(1280, 1000))
    one.visit(address)
    one.wait(f"return document.querySelector('{INPUT}') !== null")
    return one


def upload(window, path, shown):
    window.type(INPUT, str(path))
    window.wait(HAS, "#about", shown)


def write_film(path, frames, rate):
    """A clip with sound, as long as its frames."""
    rate, sound = Fraction(rate), 8000
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=rate)
        pictures.height, pictures.width, pictures.pix_fmt = frames[0].shape[0], frames[0].shape[1], "yuv420p"
        tones = container.add_stream("aac", rate=sound, layout="mono")
        for frame in frames:
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(pictures.encode())
        wave = np.sin(np.arange(int(len(frames) / rate * sound)) / 5).astype(np.float32)
        samples = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        samples.sample_rate = sound
        container.mux(tones.encode(samples))
        container.mux(tones.encode())
    return path


def film(path):
    """A film of four frames with sound: of random boxes, or of the demo clip for pictures of the page."""
    if PICTURES:
        clip = video.read_clip(ROOT / "assets" / "demo" / "clip.mp4", stop=8)
        frames = clip.mul(255).byte().permute(0, 2, 3, 1).contiguous().numpy()
        return write_film(path, list(frames), 8)
    boxes = np.random.default_rng(0).integers(0, 256, (4, 4, 6, 3), dtype=np.uint8)
    return write_film(path, list(boxes.repeat(8, axis=1).repeat(8, axis=2)), 8)


def picture(window, name, width):
    """Save the whole page as on a screen of this width, if pictures are wanted."""
    height = window.run("window.scrollTo(0, 0); return document.querySelector('.gradio-container').scrollHeight")
    window.screen(width, height)
    if PICTURES:
        (Path(PICTURES) / f"{name}.png").write_bytes(window.page())


def fetched(window, suffix):
    """The bytes behind the link to a file that the page offers, fetched as the browser would."""
    names = window.run("return [...document.querySelectorAll('#files a')].map(a => a.href)")
    name = next(name for name in names if name.endswith(suffix))
    script = "return fetch(arguments[0]).then(r => r.arrayBuffer()).then(b => [...new Uint8Array(b)])"
    return bytes(window.run(script, name))


def test_a_clip_is_restored_compared_and_taken(window, tmp_path):
    upload(window, film(tmp_path / "clip.mp4"), "frames")
    window.click("#restore")
    window.wait(HAS, "#status", "Done", seconds=900 if PICTURES else 300)
    assert "tiles" in window.run(TEXT, "#plan") and "predicted peak" in window.run(TEXT, "#plan")
    window.wait("return document.querySelectorAll('#profile img').length === 2")
    left, top, width, height = window.box(".compare")
    for kind, goal in (("mouse", 25), ("touch", 70)):
        window.drag((left + width / 2, top + height / 2), (left + width * goal / 100, top + height / 2), kind)
        assert abs(window.run(AT) - goal) <= 5
    window.press(DIVIDER, "home", *["right"] * 10)
    assert window.run(AT) == 10
    window.press(DIVIDER, "end", "left")
    assert window.run(AT) == 99
    window.press(DIVIDER, *["left"] * 49)
    last = 7 if PICTURES else 3
    assert window.run(SHOWN, f"result, frame {last // 2}")
    window.press("#frame input[type=range]", "right")
    window.wait(SHOWN, f"result, frame {last // 2 + 1}")
    record = json.loads(fetched(window, ".settings.json"))
    assert record["frames"] == last + 1 and "tmp" not in json.dumps(record["settings"])
    with av.open(io.BytesIO(fetched(window, ".mp4"))) as taken:
        assert [stream.type for stream in taken.streams] == ["video", "audio"]
        assert sum(1 for _ in taken.decode(taken.streams.video[0])) == last + 1
    outside = "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.includes('127.0.0.1'))"
    assert [name for name in window.run(outside) if not name.startswith(("data:", "blob:"))] == []
    for name, width in (("wide", 1280), ("narrow", 390)):
        window.screen(width, 900)
        assert window.run(TOO_WIDE) <= 0
        picture(window, name, width)


def test_an_example_is_chosen_and_a_preview_estimates_the_whole(window, tmp_path):
    for number, shown in ((1, "one picture"), (0, "160x90")):
        choose = "document.querySelectorAll('#examples button')[arguments[0]].click()"
        window.run(choose, number)
        window.wait(HAS, "#about", shown)
    window.wait(f"document.querySelector('{CLEAR}')?.click(); return document.querySelector('{INPUT}') !== null")
    window.wait(f"return {ABOUT} === ''")
    boxes = np.zeros((6, 32, 48, 3), dtype=np.uint8)
    upload(window, write_film(tmp_path / "slow.mp4", list(boxes), 2), "6 frames, 2 a second")
    window.click("#preview")
    window.wait(HAS, "#status", "Done", seconds=300)
    said = window.run(TEXT, "#status")
    assert said.startswith("Done: 4 frames of 192x128") and "all 6 frames would take about" in said


def test_a_second_visitor_waits_and_runs_can_be_cancelled(window, address, tmp_path):
    upload(window, write_clip(tmp_path / "long.mp4", frames=60, size=(96, 96)), "60 frames")
    window.click("#restore")
    window.wait(HAS, "#status", "Working", seconds=120)
    with opened(address) as second:
        upload(second, write_clip(tmp_path / "next.mp4", frames=50, size=(96, 96)), "50 frames")
        second.click("#restore")
        second.wait(HAS, "#status", "Waiting: 1 job before this one", seconds=120)
        window.wait(HAS, "#status", "%", seconds=120)
        window.click("#cancel")
        window.wait(HAS, "#status", "Cancelled.", seconds=120)
        second.wait(HAS, "#status", "Working", seconds=120)
        second.click("#cancel")
        second.wait(HAS, "#status", "Cancelled.", seconds=120)
    window.click("#cancel")
    window.wait(HAS, "#status", "Nothing to cancel.")


def test_a_broken_file_is_refused_in_words(window, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    upload(window, tmp_path / "broken.mp4", "Refused")
    window.click("#restore")
    window.wait(HAS, "#status", "Refused")
    said = window.run(TEXT, "#status")
    assert "not a readable video" in said and "/" not in said.replace("I/O", "")
    page = window.run("return document.body.innerText")
    assert "Traceback" not in page and str(ROOT) not in page


def ask(address, path, content=None):
    """(status, text) of an answer of the server, without a browser."""
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_files_of_the_machine_are_out_of_reach(address, tmp_path):
    secret = write_clip(tmp_path / "secret.mp4")
    for path in (secret, ROOT / "README.md"):
        assert ask(address, f"gradio_api/file={path}")[0] in (403, 404)
    for number in range(5):  # the handlers of the page, asked to read a file that was not uploaded
        data = [{"path": str(secret), "meta": {"_type": "gradio.FileData"}}, "embedded", "none", 1, 1, ""]
        words = {"data": data[: 1 if number < 3 else 6], "fn_index": number, "session_hash": f"s{number}"}
        assert ask(address, "gradio_api/queue/join", words)[0] == 200
        told = ask(address, f"gradio_api/queue/data?session_hash=s{number}")[1]
        assert '"success":false' in told and "48x32" not in told and "Working" not in told
