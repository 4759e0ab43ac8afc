"""The page in a browser: upload, run, slider by mouse and keys, cancel, a broken file, wide and narrow screens."""

import importlib.util
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from ldm import video
from tests.scripts import browser
from tests.scripts.test_demo import write_clip

pytestmark = pytest.mark.slow  # starts a server and runs the model
ROOT = Path(__file__).parents[2]
TEXT = "return document.querySelector(arguments[0]).innerText"
HAS = "return document.querySelector(arguments[0]).innerText.includes(arguments[1])"
INPUT = "#upload input[type=file]"
PICTURES = os.environ.get("PICTURES")  # a folder for pictures of the page, such as docs/page


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a page in a process of its own."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("no gradio here; pip install -c constraints.txt -e '.[demo]'")
    if browser.installed() is None:
        pytest.skip(browser.MISSING)
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--port", "0", "--most_seconds", "5"]
    variables = os.environ | {"TMPDIR": str(tmp_path_factory.mktemp("server"))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as server:
        yield server.stdout.readline().split()[0]
        server.terminate()


@pytest.fixture()
def window(address):
    with browser.Browser(size=(1280, 1000)) as opened:
        opened.visit(address)
        opened.wait(f"return document.querySelector('{INPUT}') !== null")
        yield opened


def upload(window, path, shown):
    window.type(INPUT, str(path))
    window.wait(HAS, "#about", shown)


def excerpt(path):
    """A few frames of the demo clip, for pictures of the page."""
    frames = video.read_clip(ROOT / "assets" / "demo" / "clip.mp4", stop=8)
    with video.open_writer(path, size=frames.shape[2:]) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def picture(window, name):
    if PICTURES:
        (Path(PICTURES) / f"{name}.png").write_bytes(window.page())


def test_a_clip_is_restored_compared_and_taken(window, tmp_path):
    clip = excerpt(tmp_path / "clip.mp4") if PICTURES else write_clip(tmp_path / "clip.mp4")
    upload(window, clip, "frames")
    window.click("#restore")
    window.wait(HAS, "#status", "Done", seconds=600 if PICTURES else 200)
    assert "tiles" in window.run(TEXT, "#plan") and "predicted peak" in window.run(TEXT, "#plan")
    window.wait("return document.querySelectorAll('#profile img').length === 2")
    at = "return document.querySelector('.compare').style.getPropertyValue('--at')"
    left, top, width, height = window.box(".compare")
    window.drag((left + width / 2, top + height / 2), (left + width / 4, top + height / 2))
    assert 20 <= int(window.run(at).removesuffix("%")) <= 30
    window.press(".compare input", "home", *["right"] * 10)
    assert window.run(at) == "10%"
    window.press(".compare input", *["right"] * 40)
    names = window.run("return [...document.querySelectorAll('#files a')].map(a => a.href)")
    assert any(name.endswith(".mp4") for name in names) and any(name.endswith(".settings.json") for name in names)
    fetch = "return fetch(arguments[0]).then(r => r.text())"
    record = json.loads(window.run(fetch, next(name for name in names if name.endswith(".json"))))
    assert record["frames"] >= 4 and "tmp" not in json.dumps(record["settings"])
    outside = "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.includes('127.0.0.1'))"
    assert [name for name in window.run(outside) if not name.startswith(("data:", "blob:"))] == []
    window.run("window.scrollTo(0, 0)")
    picture(window, "wide")
    window.resize(500, 1000)
    wide = window.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    window.box("#status")
    picture(window, "narrow")


def test_a_run_can_be_cancelled(window, tmp_path):
    upload(window, write_clip(tmp_path / "long.mp4", frames=60, size=(96, 96)), "60 frames")
    window.click("#restore")
    window.wait(HAS, "#status", "%", seconds=120)
    window.click("#cancel")
    window.wait(HAS, "#status", "Cancelled.", seconds=120)


def test_a_broken_file_is_refused_in_words(window, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    upload(window, tmp_path / "broken.mp4", "Refused")
    window.click("#restore")
    window.wait(HAS, "#status", "Refused")
    said = window.run(TEXT, "#status")
    assert "not a readable video" in said and "/" not in said.replace("I/O", "")


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


def test_the_folder_of_uploads_is_removed_at_the_end(tmp_path):
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("no gradio here; pip install -c constraints.txt -e '.[demo]'")
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--port", "0"]
    variables = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as server:
        assert server.stdout.readline().startswith("http://127.0.0.1:")
        assert list(tmp_path.glob("mgld-vsr-demo-*"))
        server.terminate()
        assert server.wait(60) == 143
    assert not list(tmp_path.glob("mgld-vsr-demo-*"))
