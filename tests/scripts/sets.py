"""Miniature test sets in the layouts that people have, for the tests of the benchmark."""

import json

import cv2
import numpy as np

from ldm import video
from scripts import benchmark
from tests.scripts import toy

SIZE = (64, 96)
FRAMES = 4
FAST = ("--metrics", "psnr", "ssim", "--no_report")


def make_clip(path, *, shrink=1, frames=FRAMES, first=0, noise=0):
    """A moving pattern at `path`: a lossless video, or a folder of frames named from `first` on."""
    size = tuple(side // shrink for side in SIZE)
    names = [f"{number:08d}.png" for number in range(first, first + frames)]
    rng = np.random.default_rng(len(path.stem))
    path.parent.mkdir(parents=True, exist_ok=True)
    with video.open_writer(path, size=size, lossless=True, names=None if path.suffix else names) as writer:
        for frame in toy.make_frames(frames, *SIZE):
            small = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) if shrink > 1 else frame
            writer.write(np.uint8(np.clip(small + rng.normal(0, noise, small.shape), 0, 255)) if noise else small)
    return path


def make_set(root, *, gt="GT", lq="LQ", clips=("000", "001"), suffix="", shrink=4):
    """Clips of truth and LQ below a root; {clip} in a place makes a folder for each."""
    for place, by in ((gt, 1), (lq, shrink)):
        for clip in clips if place is not None else ():
            path = root / place.format(clip=clip) if "{clip}" in place else root / place / f"{clip}{suffix}"
            make_clip(path, shrink=by)
    return root


def make_results(folder, *, clips=("000", "001"), noise=4, suffix=""):
    """What a method made of the clips."""
    for clip in clips:
        make_clip(folder / f"{clip}{suffix}", noise=noise)
    return folder


def make_both(folder, name):
    """A set of that name in DOVE's layout, and results of one method in `ours`."""
    make_set(folder / name)
    make_results(folder / "ours")
    return folder


def run(*words):
    return benchmark.main([*map(str, words)])


def read(folder):
    return json.loads((folder / "results.json").read_text())


def value(folder, metric, method="ours", clip="000", seed=None):
    found = [
        r
        for r in read(folder)["rows"]
        if (r["method"], r["metric"], r["clip"], r["seed"]) == (method, metric, clip, seed)
    ]
    assert len(found) == 1
    return found[0]["value"]
