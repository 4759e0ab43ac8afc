"""Mutated videos, images and lists: each is read, or refused in one line; nothing hangs, nothing is half written.

Every reader runs in a process of its own, which a native decoder cannot take the tests along with.
"""

import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.corpus import MUTATIONS
from tests.video.clips import frames_of
from tests.video.films import film

ROOT = Path(__file__).parents[2]
READER = """
import sys
from pathlib import Path
from basicsr_deg.reading import FilmSequence, is_film, read_picture
from ldm import video
from ldm.video.omissions import list_omissions

def look(path, damaged):
    source = video.probe(path, damaged=damaged)
    frames = sum(1 for _ in video.read(source, 0, 40))
    if source.kind == "video" and damaged == "repeat":
        assert frames == min(source.frames, 40), (frames, source.frames)
        output = path.with_name(f"out-{path.name}.mkv")
        chosen = video.choose_format(source, output, size=(source.height, source.width))
        list_omissions(source, chosen)
        if max(chosen.size) < 1000:
            video.dry_run_output(source, chosen, output)

def learn(path, damaged):
    if is_film(path):
        sequence = FilmSequence("x", path)
        sequence.frames(range(min(sequence.exact_length(), 3)))
    else:
        read_picture(path)

for line in sys.stdin:
    path = Path(line.rstrip("\\n"))
    for read in (look, learn):
        for damaged in video.DAMAGED:
            try:
                read(path, damaged)
            except ValueError as error:
                assert type(error).__name__ in ("VideoError", "ValueError"), repr(error)
                assert "\\n" not in str(error) and len(str(error)) < 500, str(error)
    print(path.name, flush=True)
"""
SUFFIXES = ("mp4", "mkv", "ts", "avi", "webm", "mov")
CODECS = {"avi": "mpeg4", "webm": "libvpx", "ts": "mpeg2video"}


def originals(folder):
    made = []
    for suffix in SUFFIXES:
        context = {"time_base": Fraction(1, 25)} if suffix in ("avi", "ts") else {}
        sound = {} if suffix == "webm" else {"sound": "mp2" if suffix in ("avi", "ts") else "aac"}
        codec = CODECS.get(suffix, "libx264")
        made.append(film(folder / f"good.{suffix}", 6, codec=codec, size=(24, 32), context=context, **sound))
    pictures = [Image.fromarray(frame) for frame in frames_of(3, 24, 32)]
    for suffix in ("png", "jpg", "bmp", "tif", "webp", "ppm", "gif"):
        made.append(folder / f"good.{suffix}")
        pictures[0].save(made[-1])
    for suffix in ("png", "webp", "gif", "tif"):
        made.append(folder / f"anim.{suffix}")
        pictures[0].save(made[-1], save_all=True, append_images=pictures[1:])
    made.append(folder / "deep.png")
    Image.fromarray(np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80).save(made[-1])
    return made


def corpus(folder, count, seed=0):
    chance, good = random.Random(seed), originals(folder)
    for number in range(count):
        original, mutate = good[number % len(good)], chance.choice(MUTATIONS["video"])
        data = mutate(bytearray(original.read_bytes()), chance)
        path = folder / f"{number:04d}{original.suffix}"
        path.write_bytes(data)
        yield path


def read_all(paths, limit):
    """Names of the files at which the reader ended, hung or failed; each is tried again behind it."""
    left, bad = list(paths), {}
    while left:
        words = "\n".join(map(str, left)) + "\n"
        try:
            done = subprocess.run(
                [sys.executable, "-c", READER], input=words, capture_output=True, text=True, cwd=ROOT, timeout=limit
            )
            names, said, status = done.stdout.split(), done.stderr, done.returncode
        except subprocess.TimeoutExpired as hung:
            names, said, status = (hung.stdout or b"").decode().split(), "hangs", "time"
        if len(names) == len(left):
            break
        bad[left[len(names)].name] = f"{status}: {said[-600:]}"
        left = left[len(names) + 1 :]
    return bad


@pytest.mark.slow
def test_many_mutated_files_are_read_or_refused(tmp_path):
    paths = list(corpus(tmp_path, 240))
    before = sorted(path.name for path in tmp_path.iterdir())
    bad = {}
    for first in range(0, len(paths), 120):
        bad |= read_all(paths[first : first + 120], limit=600)
    assert not bad
    assert sorted(path.name for path in tmp_path.iterdir()) == before
