"""Degrade a test set: a folder of PNGs per clip, determined by the seed, the protocol and the name of the clip.

python scripts/degrade.py -i clips/ -o results/degraded --protocol realbasicvsr --seed 0
python scripts/degrade.py -i clip.mp4 -o results/degraded --protocol bicubic_x4 --show

A protocol is a file of configs/degradations or a path; words like degradation.params.stages.codec_2=null change it.
manifest.json records the settings and a hash of each clip; an interrupted run resumes.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

import av
import cv2
import numpy as np

from basicsr_deg.panels import Panels
from basicsr_deg.pipeline import Degradation, traced
from ldm import config, video
from ldm.engine import provenance
from ldm.engine.finished import stored_manifest
from ldm.engine.resume import remove_partials
from ldm.files import write_atomically
from ldm.printable import printable
from ldm.video.sinks import FolderSink
from ldm.video.source import DAMAGED, is_visible
from ldm.video.writing import refuse_input
from scripts.command import (
    Parser,
    add_trust,
    exit_status,
    find_named,
    first_line,
    non_negative_int,
    positive_int,
    progress_bar,
)

PROGRAM = "degrade.py"
log = logging.getLogger("scripts.degrade")
PROTOCOLS = Path(__file__).resolve().parents[1] / "configs" / "degradations"
SHOWN = 100  # frames of --show at most


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(PROGRAM, __doc__)
    add = parser.add_argument
    add("-i", "--input", type=Path, required=True, help="video, image, folder of images, or folder of such clips")
    add("-o", "--output", type=Path, required=True, help="folder to write")
    add("--protocol", default="realbasicvsr", help="a name in configs/degradations, or a YAML (default: realbasicvsr)")
    add_trust(parser)
    add("--seed", type=non_negative_int, default=0, help="of the random numbers (default: 0)")
    add("--scale", type=float, help="sides of the clip over those of the degraded one (default: the protocol's)")
    add("--max_frames", type=positive_int, help="frames to take of each clip at most (default: all)")
    add("--damaged", choices=DAMAGED, default="stop", help="at a damaged frame: stop, or repeat the one before (stop)")
    add("--video", action="store_true", help="write lossless videos CLIP.mkv instead of folders (default: no)")
    add("--show", action="store_true", help="also write CLIP.show.mp4, every stage side by side (default: no)")
    return parser.parse_with_overrides(words)


def find_protocol(name: str) -> Path:
    """Return the file of a protocol. Raises ValueError for an unknown name."""
    return find_named(name, PROTOCOLS, "protocol")


def read_degradation(
    protocol: str, *, scale: float | None, overrides: Sequence[str] = (), trust: Sequence[str] = ()
) -> Mapping:
    """Return the node `degradation` of a protocol (a name or a path), with overrides applied.

    `scale` is the ratio of sharp to degraded sides; None for that of the protocol. Raises ValueError for an unknown
    name, ConfigError for an invalid file.
    """
    settings = config.load(find_protocol(protocol), overrides=overrides, trust=trust)
    config.check_target(settings, "degradation")
    if scale is not None:
        place = "+degradation.params"
        settings = config.override(settings, [f"{place}.scale={scale:g}", f"{place}.size=null"])
    return settings.degradation


def degradation_of(args: argparse.Namespace) -> Mapping:
    """Return the node `degradation` that the command line describes."""
    return read_degradation(args.protocol, scale=args.scale, overrides=args.overrides, trust=args.trust)


def names_of(clips: list[Path]) -> dict[Path, str]:
    """Return the name of each clip in the output: that of its folder or file, without the suffix if it is unique."""
    plain = {clip: clip.resolve().name if clip.is_dir() else clip.stem for clip in clips}
    taken = list(plain.values())
    return {clip: name if taken.count(name) == 1 else clip.name for clip, name in plain.items()}


def generator(seed: int, protocol: str, clip: str) -> np.random.Generator:
    """Return a generator that depends on the seed, the protocol and the clip alone."""
    address = hashlib.sha256(os.fsencode(f"{protocol}\n{clip}")).digest()
    return np.random.default_rng([seed, int.from_bytes(address[:16], "big")])


class Manifest:
    """OUT/manifest.json: the settings of all clips in a folder, and a hash of the pixels of each.

    A clip is entered before its folder gets its final name, so that a folder without an entry is a foreign one. Raises
    ValueError for a folder that was started with other settings or contains other files.
    """

    def __init__(self, folder: Path, made_by: Mapping):
        self.path, self.made_by, self.clips = folder / "manifest.json", dict(made_by), {}
        stored = stored_manifest(self.path, self.made_by, remedy="choose another folder")
        if stored is not None:
            self.clips = stored.get("clips")
            entries = self.clips.values() if isinstance(self.clips, dict) else [None]
            if not all(isinstance(entry, dict) and {"frames", "sha256"} <= entry.keys() for entry in entries):
                raise ValueError(f"{self.path}: got no entries of degraded clips; choose another folder")
        elif folder.exists() and (not folder.is_dir() or any(map(is_visible, folder.iterdir()))):
            raise ValueError(f"{folder}: contains other files, expected a new or empty folder")

    def enter(self, clip: str, entry: Mapping) -> None:
        """Add a clip and write the manifest."""
        self.clips = dict(sorted((self.clips | {clip: dict(entry)}).items()))
        text = json.dumps({**self.made_by, "clips": self.clips}, indent=1, sort_keys=True)
        write_atomically(self.path, f"{text}\n".encode())


@dataclass(frozen=True)
class Maker:
    """Degrade clips one at a time."""

    degradation: Degradation
    manifest: Manifest
    args: argparse.Namespace

    def make(self, clip: Path, name: str, report: Callable[[int, int], None]) -> str:
        """Degrade a clip and enter it in the manifest, unless it is finished; return a line on the result."""
        source = video.probe(clip, damaged=self.args.damaged)
        for line in source.notes:
            log.warning("%s: %s", printable(clip), printable(line))
        output, shown = self._outputs(name)
        count = min(source.frames, self.args.max_frames or source.frames)
        made_of = provenance.digest(clip, source.names[:count])
        entered = self.manifest.clips.get(name)
        if entered and output.exists() and (shown.exists() or not self.args.show):
            check_made(output, entered, made_of, clip)
            return f"{output}: finished before, {entered['frames']} frames"
        if output.exists() and not entered:
            raise ValueError(f"{output}: exists but is not in the manifest; remove it or choose another folder")
        remove_partials(output)
        panels = Panels(most=SHOWN) if self.args.show else None
        kept, size = self._sizes(source)
        frames = self._degraded(source, name, kept, size, panels)
        total = hashlib.sha256()
        with self._writer(output, source, size) as writer:
            for number, frame in enumerate(frames, 1):
                pixels = np.rint(frame * 255).astype(np.uint8)
                total.update(pixels.tobytes())
                writer.write(pixels)
                report(number, count)
            if panels:
                write_pictures(shown, panels, rate=source.rate)
            entry = {"frames": writer.written, "height": size[0], "width": size[1], "sha256": total.hexdigest()}
            entry["of"] = made_of
            self.manifest.enter(name, entry)
        return f"{output}: {entry['frames']} frames of {size[1]}x{size[0]}"

    def _outputs(self, name: str) -> tuple[Path, Path]:
        folder = self.manifest.path.parent
        return folder / (f"{name}.mkv" if self.args.video else name), folder / f"{name}.show.mp4"

    def _sizes(self, source: video.Source) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the size (h, w) to which frames are cropped, from the top left, and the size of degraded ones.

        With an integer scale, frames are cropped to multiples of it.
        """
        scale, sides = self.degradation.scale, (source.height, source.width)
        if min(sides) < scale:
            raise ValueError(f"{source.path}: got {sides[1]}x{sides[0]}, expected at least {scale:g} pixels a side")
        if self.degradation.size is None and float(scale).is_integer():
            sides = tuple(side - side % int(scale) for side in sides)
        return sides, self.degradation.output_size(*sides)

    def _degraded(self, source, name: str, kept, size, panels: Panels | None) -> Iterator[np.ndarray]:
        read = (frame[: kept[0], : kept[1]] for frame in video.read(source, 0, self.args.max_frames, as_rgb8=True))
        rng = generator(self.args.seed, self.manifest.made_by["protocol"], name)
        if panels is None:
            return self.degradation.stream(read, rng, size=size, trace=None)
        degraded = self.degradation.stream(traced(read, "input", {}, panels), rng, size=size, trace=panels)
        return traced(degraded, "output", {}, lambda name, notes, frame: panels(name, notes, frame * 255))

    def _writer(self, output: Path, source, size: tuple[int, int]) -> video.Writer:
        if self.args.video:
            return video.open_writer(output, size=size, rate=source.rate, lossless=True, source=source)
        refuse_input(output, source)
        return video.Writer(output, size, FolderSink(source.names), overwrite=True)  # a folder, whatever its suffix


def check_made(output: Path, entered: Mapping, made_of: str, clip: Path) -> None:
    """Raise ValueError unless a degraded clip was made from this clip and has not changed since."""
    if "of" not in entered:
        raise ValueError(f"{output}: was made by an earlier version; remove it, or choose another folder")
    if entered["of"] != made_of:
        raise ValueError(f"{output}: was made from other frames than {clip} has; remove it, or choose another folder")
    total = hashlib.sha256()
    for frame in video.read(output, as_rgb8=True):
        total.update(frame.tobytes())
    if total.hexdigest() != entered["sha256"]:
        raise ValueError(f"{output}: has changed since it was written; remove it to repeat this")


def write_pictures(path: Path, panels: Panels, *, rate) -> None:
    """Write the video of --show."""
    writer = None
    with contextlib.ExitStack() as stack:
        for picture in panels.pictures():
            writer = writer or stack.enter_context(video.open_writer(path, size=picture.shape[:2], rate=rate))
            writer.write(picture)


def maker_of(args: argparse.Namespace) -> Maker:
    """Return the maker for the arguments. Raises ValueError for a file that is not a protocol."""
    settings = degradation_of(args)
    degradation = config.instantiate(settings)
    if not isinstance(degradation, Degradation):
        raise ValueError(f"{args.protocol}: degradation is a {type(degradation).__name__}, expected a Degradation")
    versions = {  # of everything that determines the pixels
        "av": av.__version__,
        "cv2": cv2.__version__,
        "numpy": np.__version__,
        "code": provenance.code_digest(PROTOCOLS.parents[1] / "basicsr_deg"),
    }
    made_by = {
        "protocol": find_protocol(args.protocol).stem,
        "settings": config.plain(settings),
        "seed": args.seed,
        "max_frames": args.max_frames,
        "video": args.video,
        "versions": versions,
    }
    return Maker(degradation, Manifest(args.output, made_by), args)


def run(args: argparse.Namespace) -> int:
    clips = video.clips_in(args.input)
    maker = maker_of(args)
    failed = 0
    with progress_bar("degrading") as report:
        for clip, name in names_of(clips).items():
            try:
                log.info("%s", printable(maker.make(clip, name, partial(report, f"{name} ({len(clips)} clips)"))))
            except (ValueError, OSError, FloatingPointError) as error:
                failed += 1
                line = first_line(error)
                log.error("%s", line if printable(clip) in line else f"{printable(clip)}: {line}")
    if failed and len(clips) > 1:
        log.error("%d of %d clips failed", failed, len(clips))
    return 2 if failed else 0


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)), level=logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
