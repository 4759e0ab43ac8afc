"""Training sets of the sequence decoder: folders of sharp, degraded and restored frames, and of sampled latents.

Each folder contains CLIP/NAME.png or CLIP/NAME.npy; a latent is float32 (c, h, w), scaled. `scripts/make_latents.py`
writes such sets.
"""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from basicsr_deg.clips import long_enough
from basicsr_deg.reading import PICTURES, entries, read_picture
from basicsr_deg.reds import read_meta
from basicsr_deg.training_clips import shuffled, to_tensor

BUILDABLE = ("LatentClips",)  # what a configuration may name as a target

FOLDERS = {  # kind: its names in our sets, in those of StableSR, and as released
    "gt": ("gt", "gts", "train_sharp_sub"),
    "lq": ("lq", "inputs", "train_degrade_sub"),
    "latent": ("latent", "latents", "train_latent_sub"),
    "sample": ("sample", "samples", "train_sample_sub"),
}
SUFFIXES = {"gt": PICTURES, "lq": PICTURES, "sample": PICTURES, "latent": {".npy"}}
KEYS = {"gt": "dataroot_gt", "lq": "dataroot_lq", "latent": "dataroot_lt", "sample": "dataroot_sp"}
LOG = logging.getLogger(__name__)


class LatentClip(NamedTuple):
    """The files of a clip by kind, one per frame."""

    name: str
    files: Mapping[str, Sequence[Path]]

    def __len__(self) -> int:
        return len(self.files["gt"])


class LatentClips(Dataset):
    """`{"gt", "lq": (T, 3, ., .) in [0, 1], "latent": (T, c, h, w) scaled}` float32, and "sample" if it exists.

    Clips are neither cropped nor mirrored; the number of the first frame is a multiple of T, as released. Item i
    depends on (seed, i) alone; a pass has one item of each clip of at least T frames.

    Args:
        frames: T.
        dataroot_gt, dataroot_lq, dataroot_lt, dataroot_sp: the folders of sharp, degraded, latent and sampled clips.
        root: a folder that contains all of them under known names, in place of the arguments above.
        meta: a list such as meta_info_REDS_GT_sub.txt; only its clips are used.

    The length and the items raise ValueError for folders that are missing or do not match.
    """

    def __init__(
        self,
        *,
        frames: int,
        dataroot_gt: str | None = None,
        dataroot_lq: str | None = None,
        dataroot_lt: str | None = None,
        dataroot_sp: str | None = None,
        root: str | None = None,
        meta: str | None = None,
        seed: int = 0,
    ):
        if frames < 1:
            raise ValueError(f"got frames={frames}, expected at least 1")
        given = {"gt": dataroot_gt, "lq": dataroot_lq, "latent": dataroot_lt, "sample": dataroot_sp}
        self.roots = {kind: Path(folder).expanduser() for kind, folder in given.items() if folder is not None}
        if (root is None) == (not self.roots) or (root is None and len(self.roots.keys() - {"sample"}) < 3):
            raise ValueError("expected either root, or dataroot_gt, dataroot_lq and dataroot_lt")
        self.frames, self.root, self.meta, self.seed = frames, root, meta, seed
        self._clips: list[LatentClip] | None = None

    def __len__(self) -> int:
        return len(self._usable())

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        clips, count = self._usable(), self.frames
        done, place = divmod(index, len(clips))
        clip = clips[shuffled(self.seed, done, len(clips))[place]]
        start = count * int(np.random.default_rng([self.seed, index]).integers(len(clip) // count))
        chosen = {kind: files[start : start + count] for kind, files in clip.files.items()}
        latent = np.stack([read_latent(path) for path in chosen.pop("latent")])
        item = {}
        for kind, files in chosen.items():
            frames = stacked([read_picture(path) for path in files], files[0].parent)
            item[kind] = to_tensor(frames / np.float32(255))
        height, width = item["gt"].shape[-2:]
        if height * latent.shape[3] != width * latent.shape[2] or height % latent.shape[2]:
            h, w = latent.shape[2:]
            raise ValueError(f"{clip.name}: got latents of {w}x{h} for frames of {width}x{height}; make them again")
        return item | {"latent": torch.from_numpy(latent)}

    def _usable(self) -> list[LatentClip]:
        """Return the clips that are long enough; they are found and compared at first use."""
        if self._clips is None:
            what, roots = ("given", self.roots) if self.root is None else recognise_set(Path(self.root).expanduser())
            clips = find_latent_clips(roots, None if self.meta is None else [*read_meta(Path(self.meta))])
            LOG.info("%s: stage-2 set (%s), %d clips", self.root or self.roots["gt"], what, len(clips))
            self._clips = [clips[number] for number in long_enough(clips, self.frames, LOG)]
        return self._clips


def recognise_set(root: Path) -> tuple[str, dict[str, Path]]:
    """Return the names of the folders in `root`, and the folders by kind. Raises ValueError for a missing one."""
    if not root.is_dir():
        raise ValueError(f"got {root}, which is not there; expected a set that scripts/make_latents.py wrote")
    roots = {}
    for kind, names in FOLDERS.items():
        if there := [root / name for name in names if (root / name).is_dir()]:
            roots[kind] = there[0]
    if missing := [FOLDERS[kind] for kind in ("gt", "lq", "latent") if kind not in roots]:
        what = " or ".join(missing[0])
        raise ValueError(f"got {root} without a folder {what}, expected a set that make_latents.py wrote")
    return ", ".join(path.name for path in roots.values()), roots


def find_latent_clips(roots: Mapping[str, Path], names: Sequence[str] | None = None) -> list[LatentClip]:
    """Return the clips in folders by kind; `names` selects some. Raises ValueError for missing or different files."""
    found = {kind: clips_below(root, kind) for kind, root in roots.items()}
    names = [*found["gt"]] if names is None else names
    if not names:
        raise ValueError(f"{KEYS['gt']}: got {roots['gt']} without clips, expected folders of pictures")
    clips = []
    for name in names:
        files = {kind: clips.get(name, []) for kind, clips in found.items()}
        stems = {kind: [path.stem for path in paths] for kind, paths in files.items()}
        for kind in roots:
            if not stems[kind]:
                got = f"got no clip {name} in {roots[kind]}"
                raise ValueError(f"{KEYS[kind]}: {got}, expected one for each in every root")
            if odd := sorted({*stems[kind]} ^ {*stems["gt"]}):
                what = f"{len(stems[kind])} frames, the sharp clip {len(stems['gt'])}; {odd[0]} is only in one"
                raise ValueError(f"{KEYS[kind]}: {roots[kind] / name} has {what}")
        clips.append(LatentClip(name, files))
    return clips


def clips_below(root: Path, kind: str) -> dict[str, list[Path]]:
    """Return {clip: files of a kind in natural order}; files without a folder are clips of one frame (StableSR)."""
    if not root.is_dir():
        raise ValueError(f"{KEYS[kind]}: got {root}, which is not there; expected a folder of clips")
    clips = {}
    for path in entries(root):
        if path.is_dir():
            clips[path.name] = [file for file in entries(path) if file.suffix.lower() in SUFFIXES[kind]]
        elif path.suffix.lower() in SUFFIXES[kind]:
            clips[path.stem] = [path]
    return {name: files for name, files in clips.items() if files}


def stacked(frames: Sequence[np.ndarray], clip: object) -> np.ndarray:
    """Stack frames (H, W, 3) of a clip to (T, H, W, 3). Raises ValueError, which names `clip`, for different sizes."""
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError(f"{clip}: got frames of different size, expected one size for a clip")
    return np.stack(frames)


def read_latent(path: Path) -> np.ndarray:
    """Read a latent (c, h, w) float32, or (1, c, h, w) as StableSR writes it. Raises ValueError for an invalid file."""
    try:
        latent = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: not a readable latent ({type(error).__name__}); make it again") from None
    latent = latent[0] if latent.ndim == 4 and len(latent) == 1 else latent
    if latent.ndim != 3 or latent.dtype.kind != "f" or not np.isfinite(latent).all():
        raise ValueError(f"{path}: got {latent.shape} {latent.dtype}, expected (c, h, w) finite numbers; make it again")
    return latent.astype(np.float32)


def write_latent_clip(root: Path, name: str, content: Mapping[str, np.ndarray]) -> None:
    """Write the frames (T, H, W, 3) uint8 and latents (T, c, h, w) of a clip, by kind.

    All folders are complete before the first one is renamed to its final name (see `is_written`).
    """
    made = []
    for kind, frames in content.items():
        target = root / kind / name
        partial = target.with_name(f".{name}.partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for number, frame in enumerate(frames):
            write_frame(partial / f"{number:08d}", frame, kind)
        made.append((partial, target))
    for partial, target in made:
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)


def write_frame(stem: Path, frame: np.ndarray, kind: str) -> None:
    """Write a frame to STEM.png or a latent to STEM.npy. Raises OSError."""
    if kind == "latent":
        np.save(stem.with_suffix(".npy"), frame.astype(np.float32))
        return
    path = stem.with_suffix(".png")
    _, data = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    path.write_bytes(data.tobytes())


def is_written(root: Path, name: str, kinds: Sequence[str]) -> bool:
    """Whether all given kinds of a clip exist."""
    return all((root / kind / name).is_dir() for kind in kinds)


def remove_partial(root: Path) -> None:
    """Remove unfinished clips of an interrupted run."""
    for kind in FOLDERS:
        for partial in (root / kind).glob(".*.partial-*"):
            shutil.rmtree(partial)
