"""The work folder of a run: what it was begun with, the finished parts, and what is needed to go on after any stop."""

import contextlib
import glob
import json
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ldm.files import NOFOLLOW, PARTIAL, is_partial, partial, read_text, sync, write_whole
from ldm.printable import printable
from ldm.weights.safe import check_nested, refuse_inflating

try:
    import fcntl
except ImportError:  # Windows: two runs on one folder are not noticed there
    fcntl = None


PART = re.compile(r"\d{6}(\.\w{1,8})?")
OWN = ("manifest.json", "state.pt", "lock", "parts")  # in a work folder, beside unfinished files
MOST_PARTS = 1_000_000
UNFIT = (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError)  # of a state of another form


class WorkError(ValueError):
    """A work folder that cannot be used; the message is one line that says what to do."""


class WorkFolder:
    """`OUTPUT.work` beside an output, for one process at a time.

    It holds `manifest.json` (all that decides the output), `parts/` (finished pieces of it, in order) and `state.pt`
    (what is needed to go on behind them). Every file appears whole or not at all, a part before the state that counts
    it, so that after a stop at any moment the state tells which parts stand. `partial` names unfinished files.

    The folder may come from elsewhere: links in it are refused, and so are files of other names, as only its own are
    ever removed. Use it in a `with` block. Raises WorkError for that, for a folder in use by another process, and for
    one that was begun with another manifest, saying what differs.
    """

    def __init__(self, output: Path, manifest: Mapping) -> None:
        self.path = folder_beside(output)
        self.manifest = manifest
        self._lock, self._made = None, []

    def __enter__(self) -> "WorkFolder":
        try:
            self._made = [parent for parent in self.path.parents if not parent.exists()]
            self._refuse_foreign()
            self.parts.mkdir(parents=True, exist_ok=True)
            self._take()
            self._begin()
        except OSError as error:
            self._release()
            raise WorkError(f"{self.path}: cannot be used ({error.strerror})") from None
        except WorkError:
            self._release()
            raise
        return self

    def _refuse_foreign(self) -> None:
        """Raise WorkError for links, and for files that no run of this project makes."""
        for folder, is_own in ((self.path, lambda name: name in OWN), (self.parts, PART.fullmatch)):
            if folder.is_symlink():
                raise WorkError(f"{folder}: is a link; remove it, the work folder must lie beside its output")
            for child in folder.iterdir() if folder.exists() else ():
                if child.is_symlink():
                    raise WorkError(f"{printable(child)}: is a link; remove it")
                if not (is_own(child.name) or is_partial(child.name)):
                    raise WorkError(f"{printable(child)}: not of a work folder; move it away, or remove {self.path}")

    def _begin(self) -> None:
        """Write the manifest, or compare it with the one that is there."""
        for left in [child for child in self.path.iterdir() if is_partial(child.name)]:
            remove(left)
        begun = self._begun()
        if begun is None:
            write_whole(self.path / "manifest.json", json.dumps(self.manifest, indent=1).encode())
        elif differing := differences(begun, json.loads(json.dumps(self.manifest))):
            what = "; ".join(differing[:3]) + (" ..." if len(differing) > 3 else "")
            raise WorkError(f"{self.path}: begun with {what}; repeat that, or remove the folder to start anew")

    def __exit__(self, kind, error, trace) -> None:
        self._release()

    @property
    def parts(self) -> Path:
        return self.path / "parts"

    def part(self, number: int) -> Path:
        """Where part `number` goes, without a suffix."""
        return self.parts / f"{number:06d}"

    def load(self) -> dict | None:
        """The last state saved, None where there is none; parts that it does not count are removed.

        Raises WorkError for a file that is no such state: what it names are parts, and its tensors are all in it.
        """
        path, state = self.path / "state.pt", None
        if path.exists():
            state = self._read_state(path)
        kept = set(state["parts"] if state else ())
        for part in self.parts.iterdir():
            if part.name not in kept:
                remove(part)
        if missing := sorted(kept - {part.name for part in self.parts.iterdir()}):
            raise WorkError(f"{self.parts}: {missing[0]} is missing; remove {self.path} to start anew")
        return state

    def _read_state(self, path: Path) -> dict:
        try:
            if not path.is_file():
                raise ValueError("not a regular file")
            if zipfile.is_zipfile(path):
                refuse_inflating(path)
            state = torch.load(path, weights_only=True)
            check_nested(state)
            parts = state["parts"]
            if not isinstance(parts, list) or len(parts) > MOST_PARTS or not all(map(PART.fullmatch, parts)):
                raise ValueError("no list of parts")
        except Exception as error:  # a damaged pickle stops the reader anywhere
            raise WorkError(f"{path}: not readable ({type(error).__name__}); remove {self.path}") from error
        return state

    @contextlib.contextmanager
    def resuming(self) -> Iterator[None]:
        """Around what takes up a loaded state: one of another form is a WorkError."""
        try:
            yield
        except UNFIT as error:
            where = self.path / "state.pt"
            raise WorkError(f"{where}: does not fit this run ({type(error).__name__}); remove {self.path}") from error

    def save(self, state: dict) -> None:
        """Replace the state. `state["parts"]` are the names of the finished parts."""
        with partial(self.path / "state.pt") as path:
            torch.save(state, path)
            sync(path)

    def replan(self, plan: Mapping) -> None:
        """Another plan from here on."""
        self.manifest = {**self.manifest, "plan": dict(plan)}
        write_whole(self.path / "manifest.json", json.dumps(self.manifest, indent=1).encode())

    def remove(self) -> None:
        """Remove the folder with the files that are its own, and those made for it if they are empty."""
        self._release()
        with contextlib.suppress(OSError):
            for child in [
                child for child in self.parts.iterdir() if PART.fullmatch(child.name) or is_partial(child.name)
            ]:
                remove(child)
            self.parts.rmdir()
            for child in [child for child in self.path.iterdir() if child.name in OWN or is_partial(child.name)]:
                remove(child)
            self.path.rmdir()
        for parent in self._made:
            with contextlib.suppress(OSError):
                parent.rmdir()

    def _begun(self) -> dict | None:
        path = self.path / "manifest.json"
        if not path.exists():
            return None
        try:
            begun = json.loads(read_text(path))
        except (ValueError, RecursionError):
            begun = None
        if not isinstance(begun, dict):
            raise WorkError(f"{path}: not readable; remove {self.path} to start anew")
        return begun

    def _take(self) -> None:
        """Lock the folder for this process. The lock is opened as it is: no link followed, nothing cut off."""
        flags = os.O_RDWR | os.O_CREAT | NOFOLLOW | getattr(os, "O_NONBLOCK", 0)
        self._lock = os.open(self.path / "lock", flags, 0o666)
        if not stat.S_ISREG(os.fstat(self._lock).st_mode):
            raise WorkError(f"{self.path / 'lock'}: not a regular file; remove {self.path}")
        if fcntl is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise WorkError(f"{self.path}: another process is working on it; wait for it, or stop it") from None

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def folder_beside(output: Path) -> Path:
    """The work folder of an output."""
    return output.with_name(f"{output.name}.work")


def plan_begun_with(output: Path) -> dict | None:
    """The plan in the manifest of an output's work folder, None where there is none: a run goes on as it began."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        plan = json.loads(read_text(folder_beside(output) / "manifest.json"))["plan"]
        return plan if isinstance(plan, dict) else None
    return None


def differences(begun: Mapping, now: Mapping, place: str = "") -> list[str]:
    """`key=old, now new` for every value in which two nested dictionaries differ."""
    found = []
    for key in sorted({*begun, *now}):
        old, new, name = begun.get(key), now.get(key), f"{place}{printable(key, 60)}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{name}.")
        elif old != new:
            found.append(f"{name}={_short(old)}, now {_short(new)}")
    return found


def _short(value: Any) -> str:
    try:
        text = printable(value)
    except (RecursionError, ValueError):  # nested too deep; a number of more digits than Python prints
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:28] + "..." + text[-28:]


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; no link is followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_partials(output: Path) -> None:
    """Remove what a run that was killed left of this output, beside it."""
    for path in output.parent.glob(f".{glob.escape(output.name)}.partial-*"):
        named = PARTIAL.fullmatch(path.name)
        if named and not _is_running(int(named[1])):
            remove(path)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
