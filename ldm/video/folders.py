"""Find the clips in a folder, by one rule for upscaling, degrading, training and benchmarks.

Hidden entries and files of the system (`is_visible`) are ignored. Several images are one clip, and folders beside them
(masks, thumbnails) are skipped. Posters beside videos or folders of images are skipped; other images there are
ambiguous and refused. Skipped entries are logged.
"""

import logging
import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ldm.video.source import IMAGE_SUFFIXES, VIDEO_SUFFIXES, VideoError, files_in, is_visible, natural_order

# Names that media servers and cameras give to pictures about a video or a folder, alone or behind the video's name
POSTER = re.compile(
    r"(.*[-_. ])?(folder|poster|cover|fanart|backdrop|banner|landscape|logo|thumb|thumbnail|preview)\d*"
)
RECORDS = (".json", ".md", ".txt", ".csv", ".yaml", ".yml", ".html", ".npz", ".npy")  # written by programs beside clips
SHOWN = 5  # names in a message
LOG = logging.getLogger(__name__)


class Content(NamedTuple):
    """The clips of a folder: names of images (one clip), or names of videos and of folders that may be clips.

    `skipped` holds the names of all other entries.
    """

    images: tuple[str, ...]
    videos: tuple[str, ...]
    folders: tuple[str, ...]
    skipped: tuple[str, ...]


def list_folder(folder: Path) -> Content:
    """Return the content of a folder. Raises VideoError if it holds images and other clips, which is ambiguous."""
    images, videos = files_in(folder, IMAGE_SUFFIXES), files_in(folder, VIDEO_SUFFIXES)
    folders = tuple(sorted((p.name for p in folder.iterdir() if p.is_dir() and is_visible(p)), key=natural_order))
    known = {*images, *videos, *folders}
    others = (p for p in folder.iterdir() if is_visible(p) and p.suffix.lower() not in RECORDS)
    skipped = tuple(sorted((p.name for p in others if p.name not in known), key=natural_order))
    if not images:
        return Content((), videos, folders, skipped)
    clips = [name for name in folders if _holds_clips(folder / name)]
    if not videos and (not clips or len(images) > 1 and not _are_posters(images, ())):
        return Content(images, (), (), skipped + folders)
    if _are_posters(images, videos) or (videos and len(images) < len(videos)):
        return Content((), videos, folders, skipped + images)
    what = f"{len(videos)} videos" if videos else f"{len(clips)} folders of clips"
    shown = f"{some(images)} beside {some(videos or clips)}"
    way = "name the clip that is meant, or move the others"
    raise VideoError(f"{folder}: holds {len(images)} pictures and {what} ({shown}); {way}")


def log_skipped(folder: Path, content: Content):
    """Log the skipped entries of a folder in one line."""
    if content.skipped:
        LOG.warning("%s: %d entries are passed over: %s", folder, len(content.skipped), some(content.skipped))


def _holds_clips(folder):
    """Whether a folder holds images or videos, at most two levels down."""
    for child in sorted(folder.iterdir()):
        if is_visible(child) and (child.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) and child.is_file()):
            return True
    below = (child for child in sorted(folder.iterdir()) if child.is_dir() and is_visible(child))
    return any(files_in(child, IMAGE_SUFFIXES | VIDEO_SUFFIXES) for child in below)


def _are_posters(images, videos):
    """Whether all images are posters: by their names, or because they begin with the name of a video."""
    stems = tuple(Path(name).stem.casefold() for name in videos)
    names = [Path(name).stem.casefold() for name in images]
    return all(POSTER.fullmatch(name) or (stems and name.startswith(stems)) for name in names)


def some(names) -> str:
    """Return the first names for a message."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")


def gaps(names) -> list[str]:
    """Return the missing numbers in the file names of a sequence, such as "3" or "3 to 7", in natural order.

    Empty unless all names have the same form with one number that increases in steps of one.
    """
    forms, numbers = set(), []
    for name in names:
        match = re.fullmatch(r"(.*?)([0-9]+)([^0-9]*)", Path(name).stem)
        if match is None:
            return []
        forms.add((match[1], match[3]))
        numbers.append(int(match[2]))
    steps = [(a, b) for a, b in pairwise(numbers) if b - a != 1]
    if len(forms) != 1 or any(b <= a for a, b in steps) or 2 * len(steps) >= len(numbers):
        return []
    return [f"{a + 1}" if b == a + 2 else f"{a + 1} to {b - 1}" for a, b in steps]
