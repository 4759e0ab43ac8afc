"""Outputs that are whole or not there: written under a temporary name beside their own, synchronised, renamed."""

import os
import secrets
import shutil

from ldm.files import shortened
from ldm.video.source import VideoError, is_visible


class Replacement:
    """A file or folder that will take the place of `path`; until then it is built at `partial`.

    That is `.NAME.partial-PID-RANDOM`, so that no link can wait there.
    """

    def __init__(self, path, *, overwrite=False):
        self.path, self.overwrite = path, overwrite
        self.partial = path.with_name(f".{shortened(path.name)}.partial-{os.getpid()}-{secrets.token_hex(4)}")
        self._made = []

    def prepare(self):
        """Make the folders above; raises VideoError for a folder in use, OSError where nothing can be written."""
        if self.path.is_symlink() and self.path.is_dir():
            raise VideoError(f"{self.path}: is a link to a folder; name the folder itself")
        if self.path.is_dir():
            self._check_folder()
        for parent in [parent for parent in (self.path.parent, *self.path.parent.parents) if not parent.exists()][::-1]:
            parent.mkdir(exist_ok=True)
            self._made.append(parent)

    def publish(self):
        """Put what was built in the place of `path`, so that it survives a crash of the machine."""
        for file in sorted(self.partial.iterdir()) if self.partial.is_dir() else [self.partial]:
            _synchronise(file)
        if self.path.is_dir():
            old = self.path.with_name(f".{shortened(self.path.name)}.old-{os.getpid()}")
            os.replace(self.path, old)
            os.replace(self.partial, self.path)
            shutil.rmtree(old)
        else:
            os.replace(self.partial, self.path)
        _synchronise(self.path.parent)
        self._made = []

    def discard(self):
        """Remove what is unfinished, and folders that were made for it."""
        if self.partial.is_dir():
            shutil.rmtree(self.partial)
        elif self.partial.exists():
            self.partial.unlink()
        for folder in reversed(self._made):
            if not any(folder.iterdir()):
                folder.rmdir()

    def _check_folder(self):
        present = sorted(child.name for child in self.path.iterdir() if is_visible(child))
        if present and not self.overwrite:
            raise VideoError(f"{self.path}: the folder is not empty; remove it, choose another or allow overwriting")
        foreign = [name for name in present if not name.lower().endswith(".png")]
        if foreign:
            raise VideoError(f"{self.path}: the folder holds {foreign[0]}, which is no PNG; choose another folder")


def _synchronise(path):
    """Have the system write a file, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows keeps no handles on folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
