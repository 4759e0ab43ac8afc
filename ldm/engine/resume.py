"""The work folder of a run: what it was begun with, the finished parts, and what is needed to go on after any stop."""

import contextlib
import glob
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from ldm.files import partial, sync, write_whole

try:
    import fcntl
except ImportError:  # Windows: two runs on one folder are not noticed there
    fcntl = None


class WorkError(ValueError):
    """A work folder that cannot be used; the message is one line that says what to do."""


class WorkFolder:
    """`OUTPUT.work` beside an output, for one process at a time.

    It holds `manifest.json` (all that decides the output), `parts/` (finished pieces of it, in order) and `state.pt`
    (what is needed to go on behind them). Every file appears whole or not at all, a part before the state that counts
    it, so that after a stop at any moment the state tells which parts stand. `partial` names unfinished files.

    Use it in a `with` block. Raises WorkError for a folder in use by another process, and for one that was begun with
    another manifest, saying what differs.
    """

    def __init__(self, output: Path, manifest: Mapping) -> None:
        self.path = folder_beside(output)
        self.manifest = manifest
        self._lock, self._made = None, []

    def __enter__(self) -> "WorkFolder":
        try:
            self._made = [parent for parent in self.path.parents if not parent.exists()]
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

    def _begin(self) -> None:
        """Write the manifest, or compare it with the one that is there."""
        for left in self.path.glob(".*.partial-*"):
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
        """The last state saved, None where there is none; parts that it does not count are removed."""
        path, state = self.path / "state.pt", None
        if path.exists():
            try:
                state = torch.load(path, weights_only=True)
            except Exception as error:
                raise WorkError(f"{path}: not readable ({type(error).__name__}); remove {self.path}") from error
        kept = set(state["parts"] if state else ())
        for part in self.parts.iterdir():
            if part.name not in kept:
                remove(part)
        if missing := sorted(kept - {part.name for part in self.parts.iterdir()}):
            raise WorkError(f"{self.parts}: {missing[0]} is missing; remove {self.path} to start anew")
        return state

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
        """The folder goes, and those made for it if they are empty; its work is done, or worth nothing."""
        self._release()
        shutil.rmtree(self.path, ignore_errors=True)
        for parent in self._made:
            with contextlib.suppress(OSError):
                parent.rmdir()

    def _begun(self) -> dict | None:
        path = self.path / "manifest.json"
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise WorkError(f"{path}: not readable; remove {self.path} to start anew") from None

    def _take(self) -> None:
        self._lock = (self.path / "lock").open("w")
        if fcntl is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise WorkError(f"{self.path}: another process is working on it; wait for it, or stop it") from None

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def folder_beside(output: Path) -> Path:
    """The work folder of an output."""
    return output.with_name(f"{output.name}.work")


def plan_begun_with(output: Path) -> dict | None:
    """The plan in the manifest of an output's work folder, None where there is none: a run goes on as it began."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads((folder_beside(output) / "manifest.json").read_text(encoding="utf-8"))["plan"]
    return None


def differences(begun: Mapping, now: Mapping, place: str = "") -> list[str]:
    """`key=old, now new` for every value in which two nested dictionaries differ."""
    found = []
    for key in sorted({*begun, *now}):
        old, new, name = begun.get(key), now.get(key), f"{place}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{name}.")
        elif old != new:
            found.append(f"{name}={_short(old)}, now {_short(new)}")
    return found


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:28] + "..." + text[-28:]


def remove(path: Path) -> None:
    """A file or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_partials(output: Path) -> None:
    """What a run that was killed left of this output, beside it."""
    for path in output.parent.glob(f".{glob.escape(output.name)}.partial-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdecimal() and not _is_running(int(pid)):
            remove(path)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
