"""Restore clips on a Ray cluster with a shared disk: one worker per GPU, or per machine without a GPU.

Connects to the cluster of RAY_ADDRESS or of this machine; otherwise a local cluster is started, and stopped at the end.
A clip whose worker died is passed to another worker, which resumes it.
"""

import contextlib
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import ray
from ray.exceptions import RayActorError
from ray.util import ActorPool
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ldm.engine.jobs import Job

STORE = 80 * 10**6  # bytes of the object store of a cluster that is started here; results are only words
MOST_DEATHS = 3  # of workers on one clip, after which it fails: it may be the cause
WAIT = 5.0  # seconds before work that other processes have is asked for again
ROOT = str(Path(__file__).resolve().parents[1])


def restore_all_on_ray(jobs: list[Job], args: Namespace, *, log: Callable[[str], None]) -> list[Job]:
    """Restore all jobs by the workers of a cluster, and return those that failed.

    Args:
        args: the parsed command line of `scripts.upscale`.
        log: receives a line about the workers, and one for each worker that died.
    Raises:
        ValueError: a cluster without devices, or whose workers all died; weights or settings that are invalid.
    """
    for job in jobs:
        job.output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with cluster():
        workers = start_workers(args)
        log(f"Ray: {len(workers)} workers")
        waiting = [(job, turn) for job in jobs for turn in range(len(workers) if args.split else 1)]
        return _distribute(waiting, ActorPool(workers), log)


def _distribute(waiting: list[tuple[Job, int]], pool: ActorPool, log: Callable[[str], None]) -> list[Job]:
    """Assign items to free workers until none is left; returns the jobs that failed."""
    failed, later, deaths, running, lost = [], [], Counter(), {}, set()

    def start(worker, item):
        call = worker.restore.remote(str(item[0].path.absolute()), str(item[0].output.absolute()))
        running[item] = worker, call
        return call

    while waiting or later or running:
        while waiting and pool.has_free():
            pool.submit(start, waiting.pop(0))
        if waiting and not running:
            raise ValueError("got a Ray cluster whose workers all died, expected one; the same command resumes")
        _wait(pool)
        waiting, later = waiting + later, []
        for item, status in _results(running, lost):
            if status == "died":
                deaths[item[0]] += 1
                log(f"{item[0].output}: its worker died; another one resumes it")
            if status == "left":
                later.append(item)
            elif status in ("died", "refused") and deaths[item[0]] < MOST_DEATHS:
                waiting.append(item)
            elif status != "made":
                failed.append(item[0])
    return list(dict.fromkeys(failed))


def _wait(pool: ActorPool) -> None:
    """Wait until a call ends, or a moment if none runs."""
    if not pool.has_next():
        time.sleep(WAIT)
        return
    with contextlib.suppress(RayActorError):  # it is among the results, too
        pool.get_next_unordered()


def _results(running: dict, lost: set) -> list[tuple]:
    """Remove the calls that ended from `running`; return (item, status) for each.

    The status is "made", "failed", "left", "died", or "refused" by a worker that was among the `lost` ones already: the
    pool may have kept it, since at first it was only out of reach. Raises ValueError with the message of a worker that
    cannot restore any clip.
    """
    calls = [call for _, call in running.values()]
    ended, _ = ray.wait(calls, num_returns=len(calls), timeout=0) if calls else ([], [])
    results = []
    for item in [item for item, (_, call) in running.items() if call in ended]:
        worker, call = running.pop(item)
        try:
            status, line = ray.get(call)
        except RayActorError:
            status, line = "refused" if worker in lost else "died", None
            lost.add(worker)
            ray.kill(worker)  # in case that it is only out of reach
        if line:
            raise ValueError(line)
        results.append((item, status))
    return results


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Connect to the running cluster, or start one of this machine; disconnect, or end it, afterwards."""
    try:
        ray.init(address="auto", logging_level="warning")
    except ConnectionError:
        ray.init(address="local", object_store_memory=STORE, include_dashboard=False, logging_level="warning")
    try:
        yield
    finally:
        ray.shutdown()


def start_workers(args: Namespace) -> list:
    """Start a worker for each GPU of the cluster, or on each machine without one, with all its cores.

    Raises ValueError if there is none.
    """
    workers, on_cpu = [], (args.device or "cuda").startswith("cpu")
    remote = ray.remote(_worker_class())
    for node in [node for node in ray.nodes() if node["Alive"]]:
        cores, cards = int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))
        count = 1 if on_cpu or not cards else cards
        options = {"num_cpus": cores // count, "num_gpus": 0 if on_cpu or not cards else 1}
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        workers += [remote.options(**options).remote(ROOT, vars(args)) for _ in range(count if cores else 0)]
    if not workers:
        raise ValueError("got a Ray cluster without cores, expected machines with --num-cpus of at least 1")
    return workers


def _worker_class() -> type:
    """Return the class of workers; local, so that it reaches machines on which this module is not on the path."""

    class Worker:
        """Restores one clip after another, with a model that is built once."""

        def __init__(self, root: str, words: dict) -> None:
            sys.path.insert(0, root)
            self.args, self.restorer = Namespace(**words), None

        def restore(self, path: str, output: str) -> tuple[str, str | None]:
            """Return "made", "failed" or "left", and the message of an error that concerns all clips."""
            from scripts import upscale_jobs

            try:
                self.restorer = self.restorer or upscale_jobs.clip_restorer(self.args)
                return upscale_jobs.restore_claimed(Path(path), Path(output), self.args, self.restorer), None
            except Exception as error:
                if (line := upscale_jobs.explain(error)) is None:
                    raise
                return "failed", line

    return Worker
