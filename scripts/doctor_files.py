"""The checks of scripts/doctor.py for weights and data sets."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ldm.printable import printable

ROOT = Path(__file__).resolve().parents[1]
OK, WARN, FAIL = "OK", "WARN", "FAIL"
PUBLISHED = {  # SHA-256 of files as their authors publish them
    "v2-1_512-ema-pruned.ckpt": "88ecb782561455673c4b78d05093494b9c539fc6bfc08f3a9a4a0dd7b0b10f36",
    "open_clip_pytorch_model.bin": "9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4",
    "raft-things.pth": "fcfa4125d6418f4de95d84aec20a3c5f4e205101715a79f193243c186ac9a7e1",
}
NAMED = 10  # faulty clips that are named


class Finding(NamedTuple):
    """One line of the result: status, subject, what was found, and what to do ('' for nothing)."""

    status: str
    what: str
    text: str
    fix: str = ""

    def line(self) -> str:
        text = f"{self.status:4}  {self.what}: {self.text}" + (f"; to do: {self.fix}" if self.fix else "")
        return printable(" ".join(text.splitlines()))


def check_weights(args) -> Iterator[Finding]:
    """Check the files of each folder of weights, and that none is missing."""
    from ldm.engine.assemble import EMBEDDED, find_weights
    from ldm.weights import checkpoint

    usual = [ROOT / name for name in ("weights", "checkpoints") if (ROOT / name).is_dir()]
    for folder in args.weights or [EMBEDDED, *usual]:
        if not folder.is_dir():
            yield Finding(FAIL, "weights", f"{folder}: no such folder", "name the folder that holds the weight files")
            continue
        noted = noted_hashes(folder)
        files = sorted(path for place in (folder, folder / "flownets") if place.is_dir() for path in place.iterdir())
        bad = set()
        for path in (path for path in files if path.suffix in checkpoint.SUFFIXES):
            yield (finding := weight_finding(path, noted.get(path.name)))
            bad |= {path} if finding.status == FAIL else set()
        try:
            if bad.isdisjoint(find_weights(folder).files.values()):
                yield Finding(OK, "weights", f"{folder}: all files of the model are present")
        except (ValueError, OSError) as error:
            fix = "put the missing file there (README, The released weights)"
            yield Finding(FAIL, "weights", str(error), fix)


def noted_hashes(folder: Path) -> dict[str, str]:
    """Return {file: SHA-256} from lines of a folder's README.md that contain both."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    lines = (re.search(r"`([\w.-]+)`.*`([0-9a-f]{64})`", line) for line in text.splitlines())
    return {fits[1]: fits[2] for fits in lines if fits}


def weight_finding(path: Path, noted: str | None) -> Finding:
    """Check that a weight file is readable, and compare its kind and SHA-256 with its name."""
    from ldm.weights import checkpoint

    what, size = f"weights {path}", f"{path.stat().st_size / 1e6:.1f} MB"
    try:
        looks_like = checkpoint.recognise(checkpoint.read(path))
    except (ValueError, OSError) as error:
        return Finding(FAIL, what, str(error).removeprefix(f"{path}: "), "download or copy it again")
    stems = {Path(name).stem for name, _, _ in checkpoint.KNOWN_FILES}
    if path.stem in stems and looks_like and Path(looks_like).stem != path.stem:
        return Finding(FAIL, what, f"{size}, but holds what belongs into {looks_like}", f"rename it to {looks_like}")
    beginning = re.search(r"-([0-9a-f]{8})\.\w+$", path.name)  # names of this form end in the first digits of the hash
    expected = noted or PUBLISHED.get(path.name) or (beginning[1] if beginning else None)
    text = f"{size}, looks like {looks_like or 'nothing known'}"
    if expected is None:
        return Finding(OK if looks_like else WARN, what, f"{text}, no SHA-256 to compare with")
    got = checkpoint.sha256(path)
    if not got.startswith(expected):
        return Finding(
            FAIL, what, f"{size}, SHA-256 {got[:16]}..., expected {expected[:16]}", "copy or download it again"
        )
    return Finding(OK, what, f"{text}, SHA-256 {expected[:16]} as {'noted' if noted else 'published'}")


def check_data(args) -> Iterator[Finding]:
    """Check that the clips of each data set are complete and readable."""
    from basicsr_deg.clips import find_clips

    for root in args.data:
        what = f"data {root}"
        try:
            about, sequences = find_clips(root)
        except (ValueError, OSError) as error:
            text = str(error).removeprefix(f"{root}: ")
            yield Finding(FAIL, what, text, "name a folder of clips: folders of pictures, or videos")
            continue
        bad = [line for sequence in sequences for line in faults(sequence)]
        for line in bad[:NAMED]:
            yield Finding(FAIL, what, line, "copy or unpack this clip again")
        if len(bad) > NAMED:
            yield Finding(FAIL, what, f"{len(bad) - NAMED} more clips are faulty", "copy or unpack the set again")
        if not bad:
            frames = [len(sequence) for sequence in sequences]
            counts = f"{min(frames)} to {max(frames)}" if min(frames) < max(frames) else f"{min(frames)}"
            yield Finding(OK, what, f"{about.removeprefix(f'{root}: ')}, {counts} frames each")


def faults(sequence) -> Iterator[str]:
    """Generate errors of a clip: a gap in the numbers of its images, or an unreadable first or last frame."""
    from ldm.benchmark.numbering import gap_in

    if gap := gap_in([file.name for file in getattr(sequence, "files", [])]):
        yield f"{sequence.name}: {gap}"
        return
    try:
        first, last = sequence.frames([0])[0], sequence.frames([sequence.exact_length() - 1])[0]
    except (ValueError, OSError, IndexError) as error:
        yield f"{sequence.name}: {error}"
        return
    if first.shape != last.shape:
        sizes = " and ".join(f"{frame.shape[1]}x{frame.shape[0]}" for frame in (first, last))
        yield f"{sequence.name}: frames of {sizes}, expected one size"
