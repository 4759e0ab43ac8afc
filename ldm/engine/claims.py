"""Claims on work that several processes share, on one machine or over a shared disk.

A claim is a small file beside an output, `.NAME.claim-N`. The only operation that must be atomic is the exclusive
creation of a file (O_CREAT with O_EXCL), which local disks, NFS from version 3 on, SMB, Lustre and GPFS offer. Whoever
creates the file with the highest number N owns the output, until the process ends or its heartbeat stops:

- On the machine that wrote the claim, a lock (flock) on it tells whether the owner runs; the system releases it when
  the process ends, also by SIGKILL, and also between containers of one machine.
- On other machines the time of the last heartbeat decides (`STALE` seconds); the file server sets it and is compared
  with itself, so that clocks need not agree. A lock that the file system reports is respected there too.

An owner that was suspended for longer may find that it has lost its claim, and stops.
"""

import contextlib
import json
import os
import re
import socket
import stat
import tempfile
import threading
from pathlib import Path

from ldm.files import NOFOLLOW, shortened
from ldm.printable import printable

try:
    import fcntl
except ImportError:  # Windows: heartbeats alone decide
    fcntl = None

BEAT, STALE = 15.0, 120.0  # seconds; attributes of files on NFS may be 60 seconds old
LONGEST = 4096  # bytes of a claim
MAX_NUMBER = 10**8


class ClaimError(ValueError):
    """A claim that cannot be made, or was lost; the message is one line."""


class Claim:
    """The right of this process to make an output; `take` makes it. Use it in a `with` block, which releases it."""

    def __init__(self, place: Path, number: int, handle: int) -> None:
        self.place, self.number = place, number
        self._handle, self._lost, self._stopping = handle, False, threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, daemon=True)
        self._heartbeat.start()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.release()

    def check(self) -> None:
        """Raise ClaimError if another process has taken over."""
        if self._lost:
            raise ClaimError(f"{self.place}: another process has taken over, since this one was suspended for too long")

    def release(self) -> None:
        """Let other processes take the output, and remove the files of this claim and of those before it."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._heartbeat.join()
        with contextlib.suppress(FileNotFoundError):  # the folder was removed
            for number in [number for number in _numbers(self.place) if number <= self.number and not self._lost]:
                _path(self.place, number).unlink(missing_ok=True)
        os.close(self._handle)

    def _beat(self) -> None:
        own, later = _path(self.place, self.number), _path(self.place, self.number + 1)
        while not self._stopping.wait(BEAT):
            try:
                os.utime(own)
            except OSError:
                self._lost = not own.exists()
            self._lost = self._lost or later.exists()


def take(place: Path) -> Claim | None:
    """Claim the output `place` for this process; None if another process has it. Its folder must exist.

    Whether the output is finished must be checked after this. Raises ClaimError if no file can be written there.
    """
    try:
        last = max(_numbers(place), default=0)
        if last and _is_held(_path(place, last)):
            return None
        return _made(place, last + 1)
    except OSError as error:
        raise ClaimError(f"{place}: cannot be claimed ({error.strerror})") from None


def holder(place: Path) -> str:
    """Describe the process that has the claim on an output."""
    numbers = _numbers(place)
    found = _content(_path(place, numbers[-1])) if numbers else {}
    if not found:
        return "another process"
    return printable(f"process {found.get('process')} on {found.get('host')}")


def _path(place: Path, number: int) -> Path:
    return place.with_name(f".{shortened(place.name)}.claim-{number}")


def _numbers(place: Path) -> list[int]:
    """Return the numbers of the claims on an output, in order."""
    form = re.compile(re.escape(f".{shortened(place.name)}.claim-") + r"([1-9]\d{0,7})")
    matches = (form.fullmatch(name) for name in os.listdir(place.parent))
    return sorted(int(match[1]) for match in matches if match)


def _made(place: Path, number: int) -> Claim | None:
    """Create a claim; None if another process was faster.

    The lock is set before the content is written: a claim without content is being made.
    """
    if number >= MAX_NUMBER:
        raise ClaimError(f"{place}: claimed too often; remove the files .*.claim-* beside it")
    try:
        handle = os.open(_path(place, number), os.O_RDWR | os.O_CREAT | os.O_EXCL | NOFOLLOW, 0o666)
    except FileExistsError:
        return None
    locked = _lock(handle, exclusive=True)
    content = {"process": os.getpid(), "host": socket.gethostname(), "machine": _machine(), "locked": locked}
    os.write(handle, json.dumps(content).encode())
    os.fsync(handle)
    return Claim(place, number, handle)


def _is_held(path: Path) -> bool:
    """Whether the owner of a claim seems to run. A claim that disappears was just released; it counts as held."""
    try:
        handle = os.open(path, os.O_RDONLY | NOFOLLOW | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return True
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ClaimError(f"{printable(path)}: not a regular file; remove it")
        free = _lock(handle, exclusive=False)  # before reading, so that the content is complete if it is free
        if free is False:
            return True
        found = _content(path)
        if free and found.get("locked") is True and found.get("machine") == _machine():
            return False
        return _age(path, os.fstat(handle).st_mtime) < STALE
    finally:
        os.close(handle)


def _lock(handle: int, *, exclusive: bool) -> bool | None:
    """Lock an open file; False if another process has a lock, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _content(path: Path) -> dict:
    """Return the content of a claim; empty if it is not readable."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with open(os.open(path, os.O_RDONLY | NOFOLLOW | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            found = json.loads(file.read(LONGEST))
            return found if isinstance(found, dict) else {}
    return {}


def _age(path: Path, beat: float) -> float:
    """Return the seconds since the modification time `beat`, by the clock of the file system."""
    with tempfile.TemporaryFile(dir=path.parent, prefix=".claim-") as probe:
        probe.write(b".")
        probe.flush()
        return os.fstat(probe.fileno()).st_mtime - beat


def _machine() -> str:
    """Return an ID that all processes of this machine share, also in containers, until it reboots."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return socket.gethostname()
