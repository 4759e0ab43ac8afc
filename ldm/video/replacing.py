"""Atomic outputs: written under a temporary name, synchronised to the disk, and renamed."""

import os
import shutil

from ldm.files import set_aside, sync, temporary_name
from ldm.video.source import VideoError, is_visible


class Replacement:
    """A file or folder that is built at `partial` and then replaces `path`.

    The temporary name `.NAME.partial-PID-RANDOM` is not predictable, so that no link can exist there.
    """

    def __init__(self, path, *, overwrite=False):
        self.path, self.overwrite = path, overwrite
        self.partial = path.with_name(temporary_name(path.name))
        self._made = []

    def prepare(self):
        """Create the parent folders. Raises VideoError for a folder in use, OSError if nothing can be written."""
        if self.path.is_symlink() and self.path.is_dir():
            raise VideoError(f"{self.path}: is a link to a folder; name the folder itself")
        if self.path.is_dir():
            self._check_folder()
        for parent in [parent for parent in (self.path.parent, *self.path.parent.parents) if not parent.exists()][::-1]:
            parent.mkdir(exist_ok=True)
            self._made.append(parent)

    def publish(self):
        """Replace `path` by the finished output, after synchronising it to the disk."""
        for file in sorted(self.partial.iterdir()) if self.partial.is_dir() else [self.partial]:
            sync(file)
        if self.path.is_dir():
            old = set_aside(self.path)
            os.replace(self.partial, self.path)
            shutil.rmtree(old)
        else:
            os.replace(self.partial, self.path)
        sync(self.path.parent)
        self._made = []

    def discard(self):
        """Remove the unfinished output, and the parent folders that were created for it."""
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
