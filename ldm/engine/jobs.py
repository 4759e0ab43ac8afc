"""From a path and wishes to finished files: one job per clip, each whole or, once begun, to be gone on with."""

import glob
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ldm import config, video
from ldm.engine import provenance
from ldm.engine.assemble import flow_file
from ldm.engine.device import Peak, free_memory, hardware
from ldm.engine.plan import Plan, cache_folder, fitting_plan, measured_costs, predicted_peak, with_spare
from ldm.engine.resume import WorkFolder, plan_begun_with, remove
from ldm.engine.stream import DamagedInput, Task, restore_parts
from ldm.methods.geometry import SMALLEST_SIDE, whole
from ldm.methods.mgld import MGLD, Progress
from ldm.video.formats import CONTAINERS
from ldm.video.replacing import Replacement
from ldm.video.writing import refuse_input
from ldm.weights import checkpoint

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wishes:
    """What is asked for every clip; `memory` in bytes, `preview` in seconds, None: all there is.

    `leave`: an output with a record may be one that is left alone (`ldm.engine.finished`), in use or not.
    """

    upscale: float = 4.0
    seed: int = 42
    start: int = 0
    max_frames: int | None = None
    crf: int = 18
    lossless: bool = False
    codec: str | None = None
    depth: int | None = None
    overwrite: bool = False
    keep_work: bool = False
    save_every: int = 16
    memory: int | None = None
    preview: float | None = None
    leave: bool = False

    @property
    def stop(self) -> int | None:
        """The frame after the last one."""
        return self.start + self.max_frames if self.max_frames else None


@dataclass(frozen=True)
class Job:
    """One clip: where it comes from, the file or folder it goes to, and (once it was looked at) what is to be done.

    `whole_clip` is how many frames there would be without --preview.
    """

    path: Path
    output: Path
    task: Task | None = None
    wishes: Wishes = field(default_factory=Wishes)
    whole_clip: int = 0


@dataclass(frozen=True)
class Model:
    """A method and what it was made of, for manifests. `rounding` turns a restored frame into what is written;
    `resident` are the bytes in use when it was built, so that a plan does not depend on the clips before."""

    method: MGLD
    files: Mapping[str, Path]
    settings: Mapping
    device: str
    hashes: dict[str, str]
    rounding: Callable
    resident: int

    @classmethod
    def of(cls, method: MGLD, files: Mapping[str, Path], settings, device: str, *, rounding: Callable) -> "Model":
        """Hashes the weight files, that of the flow estimator too where it has its own."""
        weights = {slot: path for slot, path in files.items() if path.is_file() and slot != "card"}
        if (flow := flow_file(settings, files)) is not None:
            weights[settings.flow] = flow
        hashes = {slot: checkpoint.sha256(path) for slot, path in weights.items()}
        return cls(method, weights, config.plain(settings), device, hashes, rounding, Peak(device).reset())


def find_jobs(path: Path, output: Path, *, shard: tuple[int, int] = (1, 1)) -> list[Job]:
    """One job for a clip; for a folder of clips one each, to OUTPUT/NAME.

    Shard (i, n), with i from 1, is every n-th of them from the i-th. Raises ValueError.
    """
    found = video.clips_in(path)
    if found == [path]:
        return [Job(path, output)] if shard[0] == 1 else []
    if output.suffix.lower() in (".png", *CONTAINERS):
        raise ValueError(f"{output}: got one file for {len(found)} clips, expected a folder; leave out the suffix")
    names = {child: child.name if child.is_dir() else f"{child.stem}.mp4" for child in found}
    names |= {child: child.name for child in found if child.suffix.lower() in CONTAINERS}
    count = Counter(names.values())
    names |= {child: f"{child.name}.mp4" for child, name in names.items() if count[name] > 1}
    if twice := [name for name, times in Counter(names.values()).items() if times > 1]:
        raise ValueError(f"{path}: got several clips that would become {twice[0]}, expected one; rename them")
    return [Job(child, output / names[child]) for child in found][shard[0] - 1 :: shard[1]]


def prepare(job: Job, wishes: Wishes, *, say: Say) -> Job:
    """Look at the input and try the output, so that nothing is computed in vain; say what cannot be kept.

    Raises ValueError.
    """
    source = video.probe(job.path)
    if min(source.width, source.height) < SMALLEST_SIDE:
        got = f"{source.width}x{source.height}"
        raise ValueError(f"{job.path}: got {got}, expected at least {SMALLEST_SIDE} pixels a side")
    if source.frames is not None and wishes.start >= source.frames:
        raise ValueError(f"{job.path}: got --start {wishes.start}, expected less than its {source.frames} frames")
    size = (whole(source.height * wishes.upscale), whole(source.width * wishes.upscale))
    options = {"codec": wishes.codec, "depth": wishes.depth, "crf": wishes.crf, "lossless": wishes.lossless}
    chosen = video.choose_format(source, job.output, size=size, **options)
    task = Task(source, chosen, wishes.upscale, wishes.seed, wishes.start, wishes.stop)
    job = replace(job, task=task, wishes=wishes, whole_clip=task.frames or 0)
    if wishes.preview is not None:
        job = _previewed(job, wishes.preview)
    refuse_input(job.output, source)
    if not (wishes.leave and provenance.beside(job.output).is_file()):
        _try_output(job)
    for line in video.losses(source, chosen):
        say(f"{job.path}: {line}")
    return job


def _previewed(job: Job, seconds: float) -> Job:
    """The first stretch of a clip, to OUTPUT.preview.SUFFIX."""
    count = max(round(seconds * job.task.source.rate), 1)
    stop = job.task.start + min(count, job.wishes.max_frames or count)
    output = job.output.with_name(f"{job.output.stem}.preview{job.output.suffix}")
    if job.task.format.container == "folder":
        output = job.output.with_name(f"{job.output.name}.preview")
    return replace(job, output=output, task=replace(job.task, stop=stop))


def _try_output(job: Job) -> None:
    """Raise VideoError where the output cannot be written."""
    attempt = Replacement(job.output, overwrite=job.wishes.overwrite)
    try:
        attempt.prepare()
        attempt.partial.touch()
    except OSError as error:
        raise video.VideoError(f"{job.output}: cannot be written ({error.strerror})") from None
    finally:
        attempt.discard()


def restore_job(job: Job, model: Model, *, report: Progress, say: Say, tell: Say) -> dict:
    """Read, restore and write one clip; the output appears when it is whole, its JSON beside it.

    `say` is told warnings, `tell` the plan. Returns the JSON's content. After an error that the same command would meet
    again the work folder goes; after any other, what is finished stays for the same command to go on with.
    """
    began, peak = time.perf_counter(), Peak(model.device)
    _try_output(job)  # again, for one that might have been left alone, and after the clips before
    task = replace(job.task, rounding=model.rounding)
    plan, predicted = plan_for(job, model, tell)
    manifest = manifest_of(job, model, plan)
    base = peak.reset()
    with WorkFolder(job.output, manifest) as work:
        try:
            state, plan = restore_parts(model.method, task, work, plan, report=report, say=say)
            parts = [work.parts / name for name in state["parts"]]
            metadata = {"encoder_settings": f"mgld-vsr {manifest['versions'][provenance.NAME]} seed {task.seed}"}
            metadata["weights"] = " ".join(f"{slot}:{value[:16]}" for slot, value in model.hashes.items())
            _clear_stale(job.output)
            span, overwrite = (task.start, task.stop), job.wishes.overwrite
            video.join(
                parts,
                job.output,
                source=task.source,
                format=task.format,
                span=span,
                metadata=metadata,
                overwrite=overwrite,
            )
        except BaseException as error:
            _give_up(work, error, say, keep=job.wishes.preview is None)
            raise
        seconds = {name: round(value, 3) for name, value in sorted(state["seconds"].items())}
        figures = {
            "frames": state["written"],
            "seconds": {**seconds, "this run": round(time.perf_counter() - began, 3)},
            "memory": {"before": base, "predicted peak": predicted, "peak": peak.read()},
        }
        manifest = {**manifest, "plan": vars(plan)}
        provenance.record(job.output, manifest, **figures)
        if not job.wishes.keep_work:
            work.remove()
    return {**manifest, **figures}


def _give_up(work: WorkFolder, error: BaseException, say: Say, *, keep: bool) -> None:
    """Remove a work folder that helps nobody, as that of a preview; say where one stays."""
    lasting = isinstance(error, (DamagedInput, FloatingPointError))
    if lasting or not keep or not any(work.parts.iterdir()):
        work.remove()
    else:
        say(f"finished parts are kept in {work.path}; the same command goes on from there")


def _clear_stale(output: Path) -> None:
    """Remove what a run that was killed while it wrote the output left beside it; the work folder's lock is ours."""
    name = glob.escape(output.name)
    for pattern in (f".{name}.partial-*", f".{name}.old-*"):
        for left in output.parent.glob(pattern):
            remove(left)


def plan_for(job: Job, model: Model, tell: Say) -> tuple[Plan, int]:
    """The plan to work by, and the predicted peak in bytes (0 where nobody could tell). Raises ValueError."""
    method, task = model.method, job.task
    plan = Plan.of(method, part_frames=job.wishes.save_every)
    begun = plan_begun_with(job.output)
    if begun is not None and set(begun) == set(vars(plan)):
        plan = Plan(**begun)
    if method.patches:  # the released cut is what it is
        tell(f"{job.output.name}: {_patches(job, method)}; its peak is not predicted")
        return plan, 0
    size, used = (task.source.height, task.source.width), Peak(model.device).reset()
    costs = measured_costs(method, cache=cache_folder())

    def predict(plan: Plan) -> int:
        need = predicted_peak(method, plan, costs, size=size, upscale=task.upscale, frames=task.frames or 10**9)
        return with_spare(need + model.resident)

    free = free_memory(model.device)
    budget = job.wishes.memory or (free + used if free is not None else 10**15)
    if begun is None:
        plan, predicted = fitting_plan(method, plan, budget, predict)
    else:
        predicted = predict(plan)
    within = method.decoding.attention
    attending = f", attention within {within} latent pixels (approximate)" if within and plan.norms != "tile" else ""
    tell(f"{job.output.name}: {plan}{attending}; predicted peak {predicted / 1e9:.2f} of {budget / 1e9:.1f} GB")
    return plan, predicted


def _patches(job: Job, method: MGLD) -> str:
    """Words on how the released cut goes through a clip."""
    task, cut = job.task, method.patches
    height, width = method.geometry((task.source.height, task.source.width), task.upscale).work
    restored = f"restored at {width}x{height} (no side below {method.min_size} pixels)"
    return f"{restored}, in segments of {cut.n_frames} frames and patches of {cut.size} pixels every {cut.stride}"


def manifest_of(job: Job, model: Model, plan: Plan) -> dict:
    """All that decides the bytes of an output."""
    task = job.task
    names = [str(name) for name in task.source.names]
    return {
        "input": {"path": str(job.path), "names": names, "sha256": provenance.digest(job.path, names)},
        "weights": {slot: {"path": str(model.files[slot]), "sha256": value} for slot, value in model.hashes.items()},
        "settings": model.settings,
        "arguments": {"upscale": task.upscale, "seed": task.seed, "start": task.start, "stop": task.stop},
        "format": {name: str(value) for name, value in vars(task.format).items()},
        "plan": vars(plan),
        "hardware": hardware(model.device),
        "versions": provenance.versions(),
    }
