"""Watch what a process touches. An audit hook of Python cannot be removed: use it in a process of its own.

Native code raises no audit events; compare listings of the surroundings as well (`listing`).
"""

import hashlib
import os
import sys
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {  # events, and how many of their arguments are paths
    "os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2, "os.truncate": 1,
    "os.chmod": 1, "os.chown": 1, "os.utime": 1, "os.setxattr": 1, "shutil.rmtree": 1, "shutil.move": 2,
}  # fmt: skip
FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.kill", "socket.", "urllib.")
FORBIDDEN += ("ftplib.", "smtplib.", "webbrowser.", "pty.", "http.client")


class Watch:
    """What happens outside one folder, as lines in `seen`. `inside` is that folder and may be changed.

    Changes of files anywhere else are noted, and so is reading below `around` and outside `inside`; so are programs
    that are run, and connections.
    """

    def __init__(self, around: Path) -> None:
        self.around = self.inside = os.path.realpath(around)
        self.seen: list[str] = []
        self._busy = False
        sys.addaudithook(self._hook)

    def enter(self, folder: Path) -> None:
        self.inside = os.path.realpath(folder)

    def _hook(self, event: str, args: tuple) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            if event.startswith(FORBIDDEN):
                self.seen.append(f"{event} {args!r}"[:300])
            elif event == "open":
                self._opened(*args)
            elif event in CHANGES:
                for path in args[: CHANGES[event]]:
                    self._touched(event, path, changes=True)
        finally:
            self._busy = False

    def _opened(self, path, mode, flags) -> None:
        writes = bool((flags or 0) & WRITING) or any(letter in (mode or "") for letter in "wax+")
        self._touched("open", path, changes=writes)

    def _touched(self, event: str, path, *, changes: bool) -> None:
        if isinstance(path, int) or path is None:  # a descriptor of what is open already
            return
        real = os.path.realpath(os.fsdecode(path))
        if _is_below(real, self.inside) or real == os.devnull:
            return
        if changes or _is_below(real, self.around):
            self.seen.append(f"{event} {real}"[:300])


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)


def listing(folder: Path) -> dict[str, tuple]:
    """Every entry below a folder: kind, permissions, number, and of files time and hash; links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        time = 0 if path.is_dir() else state.st_mtime_ns
        found[str(path.relative_to(folder))] = (state.st_mode, state.st_ino, time, content)
    return found
