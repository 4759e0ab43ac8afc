"""Fraction of the processor time of a run that is spent outside networks."""

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ldm.engine.jobs import Job, JobOptions, Model, plan_for, prepare, restore_job

STEPWISE = ("encode_frames", "decode_frames")  # of `ldm.nets.whole_frame`: they call parts of networks one by one


class NetworkTime:
    """Processor time of this thread in seconds, spent in calls of modules and of the functions `STEPWISE`."""

    def __init__(self) -> None:
        self.seconds, self._depth, self._began = 0.0, 0, 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Context in which calls are counted. Modules must run in a single thread."""
        hooks = (
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        )
        users = [module for name, module in sys.modules.items() if name.startswith("ldm.methods.")]
        with ExitStack() as stack:
            for hook in hooks:
                stack.callback(hook.remove)
            for user, name in itertools.product(users, STEPWISE):
                if hasattr(user, name):
                    stack.enter_context(mock.patch.object(user, name, self._counted(getattr(user, name))))
            yield

    def _counted(self, function: Callable) -> Callable:
        def counted(*args, **options):
            self._enter()
            try:
                return function(*args, **options)
            finally:
                self._leave()

        return counted

    def _enter(self, *call) -> None:
        self._depth += 1
        if self._depth == 1:
            self._began = time.thread_time()

    def _leave(self, *call) -> None:
        self._depth -= 1
        if not self._depth:
            self.seconds += time.thread_time() - self._began


def host_share(model: Model, clip: Path, *, upscale: float, frames: int | None = None) -> dict:
    """Restore a clip to a temporary video, from reading to the finished file, and return the figures.

    "seconds" is processor time of all threads of the process, "networks" that of the networks; "share" is the rest, as
    a part of all. On a GPU, networks only start kernels: the share is meaningful on a CPU. Planning is not included.

    Raises ValueError and the errors of `ldm.engine.jobs.restore_job`.
    """
    spent = NetworkTime()
    with tempfile.TemporaryDirectory() as folder:
        options = JobOptions(upscale=upscale, max_frames=frames)
        job = prepare(Job(clip, Path(folder) / "out.mp4"), options, warn=_ignore)
        plan_for(job, model, _ignore, begun=None)  # costs are measured here, or read
        began = time.process_time()
        with spent.counted():
            record = restore_job(job, model, report=_ignore, warn=_ignore, log=_ignore)
        seconds = time.process_time() - began
    networks = spent.seconds
    return {
        "clip": clip.name, "frames": record["frames"], "upscale": upscale, "seconds": seconds, "networks": networks,
        "share": 1 - networks / seconds, "outside_per_frame": (seconds - networks) / record["frames"],
    }  # fmt: skip


def _ignore(*values: object) -> None:
    """Ignore progress and messages of a run."""
