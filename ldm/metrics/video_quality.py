"""Metrics of clips by external programs: VMAF by an ffmpeg with libvmaf, DOVER by the script of its authors.

Frames are written to lossless temporary files, so that memory does not depend on the length of the clip.
"""

import hashlib
import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import weakref
from functools import cache
from pathlib import Path

import av
import numpy as np

from ldm.metrics.scored_frame import ScoredFrame, Unavailable
from ldm.video.opening import open_output

MODELS = {"default": "vmaf_v0.6.1", "neg": "vmaf_v0.6.1neg"}
RATE = 25
DOVER_SCRIPT = "evaluate_one_video.py"
SEEDED = """import random, runpy, sys
import numpy
random.seed(0)
numpy.random.seed(0)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""  # the script draws its frames at random; torch has a fixed seed by default


class _Film:
    """A lossless RGB video (H.264, quantizer 0), written frame by frame."""

    def __init__(self, path: Path):
        self.path = path
        self._file = self._stream = None

    def add(self, frame: np.ndarray) -> None:
        if self._file is None:
            self._file = open_output(self.path)
            self._stream = self._file.add_stream("libx264rgb", rate=RATE)
            self._stream.height, self._stream.width = frame.shape[:2]
            self._stream.pix_fmt, self._stream.options = "rgb24", {"qp": "0", "preset": "ultrafast"}
        self._file.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def close(self) -> bool:
        """Close the file; returns False if no frame was added."""
        if self._file is None:
            return False
        self._file.mux(self._stream.encode())
        self._file.close()
        self._file = None
        return True


class Vmaf:
    """VMAF of a clip by libvmaf, from 8-bit yuv420p; the value of the clip is libvmaf's mean over frames."""

    def __init__(self, ffmpeg: Path, model: str):
        self.ffmpeg, self.model = ffmpeg, MODELS[model]
        self._folder = _temporary(self)
        self._films = [_Film(self._folder / f"{name}.mkv") for name in ("output", "truth")]

    def push(self, before: ScoredFrame | None, current: ScoredFrame) -> None:
        """Add the next frame of the output and of the ground truth."""
        for film, frame in zip(self._films, (current.frame, current.truth), strict=True):
            film.add(frame)

    def finish(self) -> tuple[list[float], list[float]]:
        """Return VMAF of the clip and of each frame. Raises Unavailable if ffmpeg fails."""
        if not all([film.close() for film in self._films]):
            return [float("nan")], []
        graph = "[0:v]format=yuv420p[a];[1:v]format=yuv420p[b];"
        graph += f"[a][b]libvmaf=model=version={self.model}:log_fmt=json:log_path=vmaf.json"
        words = [self.ffmpeg, "-v", "error", "-i", "output.mkv", "-i", "truth.mkv", "-lavfi", graph, "-f", "null", "-"]
        _run("ffmpeg", words, self._folder)
        content = json.loads((self._folder / "vmaf.json").read_text())
        values = [frame["metrics"]["vmaf"] for frame in content["frames"]]
        _remove(self._folder)
        return [content["pooled_metrics"]["vmaf"]["mean"]], values


class Dover:
    """DOVER (Wu et al. 2023) of a clip by its authors' script in a checkout of their code: the fused score, 0 to 1.

    Some tables show it times 100, or its technical branch alone (around 4 to 15): not comparable.
    """

    def __init__(self, checkout: Path, device: str):
        self.checkout, self.device = checkout, device
        self._folder = _temporary(self)
        self._film = _Film(self._folder / "output.mp4")

    def push(self, before: ScoredFrame | None, current: ScoredFrame) -> None:
        """Add the next frame."""
        self._film.add(current.frame)

    def finish(self) -> tuple[list[float], None]:
        """Return the score of the clip. Raises Unavailable if the script fails."""
        if not self._film.close():
            return [float("nan")], None
        words = [sys.executable, "-c", SEEDED, DOVER_SCRIPT, "-f", "-v", self._film.path, "-d", self.device]
        score = re.search(r"fused overall score.*:\s*([0-9.eE+-]+)", _run("DOVER", words, self.checkout))
        _remove(self._folder)
        if not score:
            raise Unavailable(f"{DOVER_SCRIPT} printed no fused score")
        return [float(score[1])], None


def find_ffmpeg(named: Path | None = None) -> tuple[Path, str]:
    """Return an ffmpeg with libvmaf and its version: `named`, or that of imageio-ffmpeg, or that of the system.

    Raises Unavailable if there is none.
    """
    candidates = [named] if named else [_packaged_ffmpeg(), shutil.which("ffmpeg")]
    for candidate in filter(None, candidates):
        if version := _version_with_vmaf(Path(candidate)):
            return Path(candidate).absolute(), version
    what = f"{named} is no ffmpeg with libvmaf" if named else "needs an ffmpeg with libvmaf: pip install imageio-ffmpeg"
    raise Unavailable(what)


def find_dover(checkout: Path | None) -> tuple[Path, str]:
    """Return the folder of DOVER's code, and a hash of its script, settings and weights.

    Raises Unavailable for None or an incomplete folder.
    """
    if checkout is None:
        raise Unavailable("needs a checkout of DOVER with its weights: --dover DIR")
    if not (checkout / DOVER_SCRIPT).is_file():
        raise Unavailable(f"no {DOVER_SCRIPT} in {checkout}")
    settings = checkout / "dover.yml"
    named = re.search(r"^test_load_path:\s*(\S+)", settings.read_text() if settings.is_file() else "", re.MULTILINE)
    if named and not (checkout / named[1]).is_file():
        raise Unavailable(f"no {named[1]} in {checkout}: fetch DOVER's weights as its README says")
    files = [checkout / name for name in (DOVER_SCRIPT, "dover.yml", *(named.groups() if named else ()))]
    stamps = tuple((str(file), file.stat().st_mtime_ns) for file in files if file.is_file())
    return checkout.resolve(), _digest(stamps)


@cache
def _digest(stamps: tuple[tuple[str, int], ...]) -> str:
    """Return the first digits of a SHA-256 of files, cached by their modification times."""
    total = hashlib.sha256()
    for path, _ in stamps:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()[:8]


def _packaged_ffmpeg() -> str | None:
    try:
        return importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return None


@cache
def _version_with_vmaf(ffmpeg: Path) -> str | None:
    try:
        texts = [
            subprocess.run([ffmpeg, word], capture_output=True, text=True).stdout for word in ("-filters", "-version")
        ]
    except OSError:
        return None
    version = re.match(r"ffmpeg version (\S+)", texts[1])
    return version[1] if version and " libvmaf " in texts[0] else None


def _run(name: str, words: list, folder: Path) -> str:
    """Run a program and return its output. Raises Unavailable with the last line of its errors if it fails."""
    done = subprocess.run([str(word) for word in words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise Unavailable(f"{name} failed: {last}"[:160])
    return done.stdout


def _temporary(owner) -> Path:
    """Create a temporary folder that is removed when its owner is collected."""
    folder = Path(tempfile.mkdtemp(prefix="measure-"))
    weakref.finalize(owner, _remove, folder)
    return folder


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
