"""Mutated inputs for upscale.py: python tests/corpus.py FOLDER [--count 320] [--seed 0]

Writes small good files (videos of several codecs, a folder of PNGs, JPEG, weights, a model's YAML) and mutations of
them: bytes flipped, runs of bytes zeroed, dropped or repeated, files cut short; in YAML also words and numbers swapped.
FOLDER/KIND/NUMBER.SUFFIX, the same for the same seed.
"""

import argparse
import random
import re
import shutil
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script

import av
import cv2

from tests.scripts import toy

FRAMES = 3
CODECS = {"mp4": "libx264", "mkv": "libx264", "mov": "mpeg4", "webm": "libvpx", "avi": "mpeg4"}
WORDS = (
    "null",
    "-1",
    "0",
    "3",
    "1.5",
    "1e9",
    "1e999",
    ".nan",
    "[]",
    "[1, 2]",
    "{}",
    "yes",
    "eps",
    "''",
    "${flow}",
    "a: b",
)


def make_originals(folder: Path) -> dict[str, list[Path]]:
    """Good files by kind: video, image, folder (one of its images is mutated), weights, yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    videos = [make_video(folder / f"clip.{suffix}", codec) for suffix, codec in CODECS.items()]
    images = [folder / "frame.png", folder / "frame.jpg"]
    for path in images:
        cv2.imwrite(str(path), toy.make_frames(1)[0])
    model = toy.make_model(folder / "model")
    weights = [model / "mgldvsr_unet.safetensors", model / "video_vae_cfw.safetensors"]
    return {"video": videos, "image": images, "weights": weights, "yaml": [model / "model.yaml"]}


def make_video(path: Path, codec: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for array in toy.make_frames(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    return path


def flip(data: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.choice((1, 1, 3, 20))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def flip_the_head(data: bytearray, chance: random.Random) -> bytearray:
    """Headers are where a reader's decisions are made."""
    for _ in range(chance.choice((1, 2, 5))):
        data[chance.randrange(min(len(data), 600))] = chance.randrange(256)
    return data


def cut(data: bytearray, chance: random.Random) -> bytearray:
    return data[: chance.randrange(len(data))]


def a_run(data: bytearray, chance: random.Random) -> slice:
    begin = chance.randrange(len(data))
    return slice(begin, begin + chance.choice((1, 16, 300)))


def zero(data: bytearray, chance: random.Random) -> bytearray:
    run = a_run(data, chance)
    data[run] = bytes(len(data[run]))
    return data


def drop(data: bytearray, chance: random.Random) -> bytearray:
    del data[a_run(data, chance)]
    return data


def repeat(data: bytearray, chance: random.Random) -> bytearray:
    run = a_run(data, chance)
    data[run.start : run.start] = data[run]
    return data


def swap_words(data: bytearray, chance: random.Random) -> bytearray:
    """Another value, or a key of another name, somewhere in a YAML file."""
    text = data.decode()
    if chance.random() < 0.2:
        found = chance.choice(list(re.finditer(r"\w+(?=:)", text)))
        return bytearray((text[: found.start()] + found[0][:-1] + text[found.end() :]).encode())
    found = chance.choice(list(re.finditer(r"(?<=: )[^\s{}\[\],]+|(?<=- )[^\s{}\[\],]+", text)))
    return bytearray((text[: found.start()] + chance.choice(WORDS) + text[found.end() :]).encode())


MUTATIONS: dict[str, tuple[Callable, ...]] = {
    "video": (flip, flip_the_head, cut, zero, drop, repeat),
    "image": (flip, flip_the_head, cut, zero, drop, repeat),
    "weights": (flip_the_head, flip_the_head, cut, zero, drop, repeat),
    "yaml": (swap_words, swap_words, swap_words, swap_words, flip, cut, drop),
}
SHARES = {"video": 0.4, "image": 0.2, "weights": 0.15, "yaml": 0.25}


def make_corpus(folder: Path, count: int, seed: int = 0) -> list[tuple[str, Path, str]]:
    """(kind, mutated file, how) for about `count` mutations; the originals lie in FOLDER/good."""
    originals, chance, made = make_originals(folder / "good"), random.Random(seed), []
    for kind, share in SHARES.items():
        (folder / kind).mkdir()
        for number in range(round(count * share)):
            original, mutate = originals[kind][number % len(originals[kind])], chance.choice(MUTATIONS[kind])
            path = folder / kind / f"{number:03d}{original.suffix}"
            path.write_bytes(mutate(bytearray(original.read_bytes()), chance))
            made.append((kind, path, f"{mutate.__name__} of {original.name}"))
    return made


def model_with(good: Path, mutated: Path, name: str, target: Path) -> Path:
    """A copy of the good model's folder in which one file is the mutated one."""
    shutil.copytree(good, target)
    shutil.copyfile(mutated, target / name)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for kind, path, how in make_corpus(args.folder, args.count, args.seed):
        print(f"{path}: {kind}, {how}")
