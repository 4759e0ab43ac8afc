"""The work folder of a run: its manifest, its finished parts, and the state needed to resume."""

import contextlib
import glob
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from ldm.engine.device import is_out_of_memory
from ldm.engine.finished import OutputDiffers, changes, continued, portable, stored_manifest
from ldm.engine.tensor_store import FILE, TensorStore, save_tensors
from ldm.files import NOFOLLOW, TEMPORARY, is_temporary, read_object, set_aside, shortened, write_atomically
from ldm.printable import printable
from ldm.weights.safe import check_nested, refuse_bombs

try:
    import fcntl
except ImportError:  # Windows: concurrent runs on one folder are not detected
    fcntl = None


LOG = logging.getLogger(__name__)
PART = re.compile(r"\d{6}(\.\w{1,8})?")
OWN = ("manifest.json", "state.pt", "lock", "parts", "tensors")  # names in a work folder, besides unfinished files
MAX_PARTS = 1_000_000
# Raised while loading an incompatible state.
STATE_ERRORS = (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError)


class WorkError(ValueError):
    """A work folder that cannot be used; the message is one line with a remedy."""


class WorkFolder:
    """The folder `OUTPUT.work` beside an output, locked by one process. Use it in a `with` block.

    It holds `manifest.json` (everything that determines the output), `parts/` (finished parts of the output, in order),
    `state.pt` (the state needed to continue after them) and `tensors/` (the tensors of that state). Files are written
    atomically, parts and tensors before the state that lists them, so that the state is valid whenever a run is
    interrupted. Unfinished files have names of `atomic_file`.

    The folder is not trusted: links and files with unexpected names are refused, and only expected files are ever
    removed. Raises WorkError for such files, for a folder in use by another process, and for one with a different
    manifest; the message lists the differences. Paths, the device and its threads may differ: hashes tell whether input
    and weights are the same. `warn` receives a line about them.
    """

    def __init__(self, output: Path, manifest: Mapping, *, warn: Callable[[str], None] = LOG.warning) -> None:
        self.path, self._warn = folder_beside(output), warn
        self.manifest = manifest
        self.tensors = TensorStore(self.path / "tensors")
        self._lock, self._made, self._loaded = None, [], False

    def __enter__(self) -> "WorkFolder":
        try:
            self._made = [parent for parent in self.path.parents if not parent.exists()]
            self._refuse_foreign()
            self.parts.mkdir(parents=True, exist_ok=True)
            self._lock_folder()
            self._check_manifest()
        except OSError as error:
            self._release()
            raise WorkError(f"{self.path}: cannot be used ({error.strerror})") from None
        except WorkError:
            self._release()
            raise
        return self

    def _refuse_foreign(self) -> None:
        """Raise WorkError for links and for files with unexpected names."""
        known = (
            (self.path, lambda name: name in OWN),
            (self.parts, PART.fullmatch),
            (self.tensors.folder, FILE.fullmatch),
        )
        for folder, is_own in known:
            if folder.is_symlink():
                raise WorkError(f"{folder}: is a link; remove it, the work folder must lie beside its output")
            for child in folder.iterdir() if folder.exists() else ():
                _refuse_special(child)
                if not (is_own(child.name) or is_temporary(child.name)):
                    raise WorkError(f"{printable(child)}: not of a work folder; move it away, or remove {self.path}")

        for part in self.parts.iterdir() if self.parts.exists() else ():
            for picture in part.iterdir() if part.is_dir() else ():
                _refuse_special(picture)

    def _check_manifest(self) -> None:
        """Write the manifest, or compare it with an existing one."""
        for left in [child for child in self.path.iterdir() if is_temporary(child.name)]:
            remove(left)
        path = self.path / "manifest.json"
        try:
            remedy = "repeat that, or remove the folder to start again"
            stored = stored_manifest(path, self.manifest, remedy=remedy, compared=portable)
        except OutputDiffers as error:
            raise WorkError(str(error)) from None
        was = {key: stored.get(key) for key in self.manifest} if stored else self.manifest
        if moved := changes(continued(was, self.manifest), self.manifest):
            self._warn(f"{self.path}: started with {moved}; another device may round in another way")
        if stored != json.loads(json.dumps(self.manifest)):
            write_atomically(path, json.dumps(self.manifest, indent=1).encode())

    def __exit__(self, kind, error, trace) -> None:
        self._release()

    @property
    def parts(self) -> Path:
        """The folder of the finished parts."""
        return self.path / "parts"

    def part(self, number: int) -> Path:
        """Return the path of part `number`, without a suffix."""
        return self.parts / f"{number:06d}"

    @property
    def saved(self) -> bool:
        """Whether a state was saved; before the first part is written it may hold work over a scene."""
        return (self.path / "state.pt").exists()

    def load(self) -> dict | None:
        """Return the last saved state, or None; remove parts that it does not list.

        Raises WorkError for an invalid state: invalid names of parts, or tensors without their values.
        """
        path, state = self.path / "state.pt", None
        if path.exists():
            state, self._loaded = self._read_state(path), True
        kept = set(state["parts"] if state else ())
        for part in self.parts.iterdir():
            if part.name not in kept:
                remove(part)
        self._sweep()
        if missing := sorted(kept - {part.name for part in self.parts.iterdir()}):
            raise WorkError(f"{self.parts}: {missing[0]} is missing; remove {self.path} to start again")
        return state

    def _read_state(self, path: Path) -> dict:
        try:
            if not path.is_file():
                raise ValueError("not a regular file")
            refuse_bombs(path)
            state = torch.load(path, weights_only=True)
            check_nested(state)
            parts = state["parts"]
            if not isinstance(parts, list) or len(parts) > MAX_PARTS or not all(map(PART.fullmatch, parts)):
                raise ValueError("no list of parts")
            return self.tensors.restored(state)
        except Exception as error:  # a damaged pickle can raise any error
            raise WorkError(f"{path}: not readable ({type(error).__name__}); remove {self.path}") from error

    @contextlib.contextmanager
    def resuming(self) -> Iterator[None]:
        """Turn errors of code that uses a loaded state into WorkError: the state is incompatible."""
        try:
            yield
        except STATE_ERRORS as error:
            raise self._incompatible(error) from error

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Turn errors of code that computes with a loaded state, or joins loaded parts, into WorkError.

        Errors that are one line already pass, and memory that ran out; so do all errors where no state was loaded.
        """
        try:
            yield
        except (*STATE_ERRORS, AssertionError) as error:
            if not self._loaded or isinstance(error, ValueError) or is_out_of_memory(error):
                raise
            raise self._incompatible(error) from error

    def _incompatible(self, error: Exception) -> WorkError:
        where = self.path / "state.pt"
        return WorkError(f"{where}: does not fit this run ({type(error).__name__}); remove {self.path}")

    def save(self, state: dict) -> None:
        """Replace the saved state. `state["parts"]` lists the names of the finished parts.

        Only tensors that were not saved before are written.
        """
        state = self.tensors.replaced(state)
        save_tensors(self.path / "state.pt", state)
        self._sweep()

    def _sweep(self) -> None:
        """Remove tensors that the saved state does not need."""
        for path in self.tensors.unused():
            remove(path)

    def replan(self, plan: Mapping) -> None:
        """Replace the plan in the manifest."""
        self.manifest = {**self.manifest, "plan": dict(plan)}
        write_atomically(self.path / "manifest.json", json.dumps(self.manifest, indent=1).encode())

    def remove(self) -> None:
        """Remove the folder with its own files, and parent folders created for it if they are empty."""
        self._release()
        with contextlib.suppress(OSError):
            self._clear_aside(set_aside(self.path))
        for parent in self._made:
            with contextlib.suppress(OSError):
                parent.rmdir()

    def _clear_aside(self, aside: Path) -> None:
        """Remove the folder's own files under its temporary name; if others remain, the folder gets its name back."""
        try:
            _clear(aside / self.parts.name, PART.fullmatch)
            _clear(aside / self.tensors.folder.name, FILE.fullmatch)
            _clear(aside, lambda name: name in OWN)
        except OSError:
            aside.rename(self.path)

    def _lock_folder(self) -> None:
        """Lock the folder for this process. Opening the lock file follows no link and truncates nothing."""
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


def _refuse_special(path: Path) -> None:
    """Raise WorkError for a link, a pipe or a device: a link leads elsewhere, and the others may be read for ever."""
    mode = path.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise WorkError(f"{printable(path)}: is {'a link' if stat.S_ISLNK(mode) else 'not a regular file'}; remove it")


def _clear(folder: Path, is_own: Callable[[str], object]) -> None:
    """Remove a folder of known files, if it exists. Raises OSError if others remain."""
    if folder.is_dir():
        for child in [child for child in folder.iterdir() if is_own(child.name) or is_temporary(child.name)]:
            remove(child)
        folder.rmdir()


def folder_beside(output: Path) -> Path:
    """Return the path of the work folder of an output."""
    return output.with_name(f"{output.name}.work")


def recorded_plan(output: Path) -> dict | None:
    """Return the plan in the manifest of an output's work folder, or None; a resumed run keeps its plan."""
    with contextlib.suppress(OSError, ValueError):
        plan = read_object(folder_beside(output) / "manifest.json").get("plan")
        return plan if isinstance(plan, dict) else None
    return None


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its contents; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_partials(output: Path) -> None:
    """Remove temporary files of this output that killed runs left behind; this process must not be writing it."""
    for path in output.parent.glob(f".{glob.escape(shortened(output.name))}.*-*"):
        match = TEMPORARY.fullmatch(path.name)
        if match and not _is_running(int(match[1])):
            remove(path)


def _is_running(pid: int) -> bool:
    """Whether another process has this ID; in a container, a killed run may have had the ID of this process."""
    if pid == os.getpid():
        return False
    try:
        with contextlib.suppress(PermissionError, OverflowError):  # the process of another user; no valid number
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
