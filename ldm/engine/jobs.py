"""Restore clips to files, one job per clip. Outputs are atomic; interrupted jobs resume."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from torch import nn

from ldm import config, video
from ldm.engine import provenance
from ldm.engine.assemble import Weights, build_method, build_networks, used_files
from ldm.engine.device import Peak, hardware, memory_budget
from ldm.engine.parts import Task, restore_parts
from ldm.engine.plan import Plan, cache_folder, fitting_plan, measured_costs, predicted_peak, resumed_plan, with_reserve
from ldm.engine.resume import WorkFolder, recorded_plan, remove_partials
from ldm.methods.contract import Method, Progress
from ldm.methods.geometry import MIN_SIDE, floor_pixels
from ldm.video.formats import CONTAINERS
from ldm.video.replacing import Replacement
from ldm.video.writing import refuse_input
from ldm.weights import checkpoint

Log = Callable[[str], None]
UNLIMITED = 10**15  # bytes, where the system does not report its memory
MADE_OF = ("input", "weights", "settings", "arguments", "versions")  # entries of a manifest that determine the frames


@dataclass(frozen=True)
class JobOptions:
    """Options of all clips. `memory` in bytes (None: free memory), `preview` in seconds (None: the whole clip).

    `skip_finished` keeps an existing output if the same command wrote it (`ldm.engine.finished`).
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
    damaged: str = "stop"
    skip_finished: bool = False
    prompt: str | None = None

    @property
    def stop(self) -> int | None:
        """Number of the frame after the last one; None for the end of the clip."""
        return self.start + self.max_frames if self.max_frames else None


@dataclass(frozen=True)
class Job:
    """One clip: its input, the file or folder of its output, and its task, known after probing the input.

    `whole_clip` is the number of frames without --preview.
    """

    path: Path
    output: Path
    task: Task | None = None
    options: JobOptions = field(default_factory=JobOptions)
    whole_clip: int = 0


@dataclass(frozen=True)
class Model:
    """A model that is built at first use, so that finished outputs are found without loading weights.

    Args:
        weights: its weight files.
        settings: its configuration.
        device: its device.
        rounding: converts a restored frame (c, h, w) in [0, 1] to the pixels to write.
        networks: filled networks by name, such as those of another model; None: they are loaded from the files.
    """

    weights: Weights
    settings: Mapping
    device: str
    rounding: Callable
    networks: Mapping[str, nn.Module] | None = None

    @cached_property
    def method(self) -> Method:
        """The method; built at first access."""
        if self.networks is not None:
            return config.instantiate(self.settings["method"], networks=self.networks)
        return build_method(self.settings, self.weights, device=self.device)

    def build(self) -> Method:
        """Build the method if necessary and return it. Raises CheckpointError, ConfigError or ValueError."""
        return self.method

    @cached_property
    def resident(self) -> int:
        """Bytes in use after building; measured once, so that plans do not depend on earlier clips."""
        device = str(self.method.device)
        return Peak(device).reset()

    @property
    def files(self) -> dict[str, Path]:
        """The weight files that the settings use, by the names of their entries."""
        used = {entry.name for entry in used_files(self.settings)}
        return {name: path for name, path in self.weights.files.items() if name in used}

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the `files`, by the names of their entries."""
        return {name: checkpoint.sha256(path) for name, path in self.files.items()}

    @cached_property
    def used_settings(self) -> dict:
        """The part of the configuration that the model uses, as plain values, for manifests and records."""
        plain = config.plain(self.settings)
        rounding = (plain.get("output") or {}).get("rounding")
        return {"networks": plain["networks"], "method": plain["method"], "output": {"rounding": rounding}}


def share_networks(models: Mapping[str, Model], swaps: Mapping[str, Mapping[str, str]]) -> dict[str, Model]:
    """Return the models with networks that are built once for all models with the same ones and the same weight files.

    Args:
        swaps: for the name of a model, networks -> the networks of the model that replace them.

    Raises CheckpointError, ConfigError or ValueError.
    """
    built, sharing = {}, {}
    for name, model in models.items():
        files = {entry: str(path) for entry, path in model.files.items()}
        key = json.dumps([model.used_settings["networks"], files], sort_keys=True)
        if key not in built:
            built[key] = build_networks(model.settings, model.weights, device=model.device)
        own = swaps.get(name, {})
        networks = built[key] | {network: built[key][other] for network, other in own.items()}
        words = [f"networks.{network}=${{networks.{other}}}" for network, other in own.items()]
        sharing[name] = replace(model, settings=config.override(model.settings, words), networks=networks)
    return sharing


def find_jobs(path: Path, output: Path, *, shard: tuple[int, int] = (1, 1)) -> list[Job]:
    """Return one job for a clip, or one job per clip of a folder, with outputs OUTPUT/NAME.

    Shard (i, n), with i from 1, selects every n-th job from the i-th. Raises ValueError for conflicting outputs.
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


def prepare(job: Job, options: JobOptions, *, warn: Log) -> Job:
    """Probe the input and check that the output can be written, before anything is computed.

    `warn` receives a line for each property of the input that the output cannot keep. Raises ValueError.
    """
    source = video.probe(job.path, damaged=options.damaged)
    if min(source.width, source.height) < MIN_SIDE:
        got = f"{source.width}x{source.height}"
        raise ValueError(f"{job.path}: got {got}, expected at least {MIN_SIDE} pixels a side")
    if source.frames is not None and options.start >= source.frames:
        raise ValueError(f"{job.path}: got --start {options.start}, expected less than its {source.frames} frames")
    size = (floor_pixels(source.height * options.upscale), floor_pixels(source.width * options.upscale))
    encoding = {"codec": options.codec, "depth": options.depth, "crf": options.crf, "lossless": options.lossless}
    chosen = video.choose_format(source, job.output, size=size, **encoding)
    task = Task(source, chosen, options.upscale, options.seed, options.start, options.stop, options.prompt)
    job = replace(job, task=task, options=options, whole_clip=task.frames or 0)
    if options.preview is not None:
        job = _previewed(job, options.preview)
    refuse_input(job.output, source)
    if not (options.skip_finished and provenance.record_path(job.output).is_file()):
        _try_output(job)
        video.dry_run_output(source, chosen, job.output, start=options.start)
    for line in video.list_omissions(source, chosen):
        warn(f"{job.path}: {line}")
    return job


def _previewed(job: Job, seconds: float) -> Job:
    """Limit a job to its first `seconds`, with the output OUTPUT.preview.SUFFIX."""
    count = max(round(seconds * job.task.source.rate), 1)
    stop = job.task.start + min(count, job.options.max_frames or count)
    output = job.output.with_name(f"{job.output.stem}.preview{job.output.suffix}")
    if job.task.format.container == "folder":
        output = job.output.with_name(f"{job.output.name}.preview")
    return replace(job, output=output, task=replace(job.task, stop=stop))


def _try_output(job: Job) -> None:
    """Raise VideoError if the output cannot be written."""
    attempt = Replacement(job.output, overwrite=job.options.overwrite)
    try:
        attempt.prepare()
        attempt.partial.touch()
    except OSError as error:
        raise video.VideoError(f"{job.output}: cannot be written ({error.strerror})") from None
    finally:
        attempt.discard()


def restore_job(job: Job, model: Model, *, report: Progress, warn: Log, log: Log) -> dict:
    """Read, restore and write one clip. The output appears when it is complete, with its record (JSON) beside it.

    `warn` receives warnings, `log` the plan. Returns the record. If an error would occur again, the work folder is
    removed; after other errors, the finished parts are kept and the same command resumes.
    """
    began, peak = time.perf_counter(), Peak(model.device)
    _try_output(job)  # again: earlier clips may have changed it since `prepare`
    task = replace(job.task, rounding=model.rounding)
    plan, predicted = plan_for(job, model, log, begun=recorded_plan(job.output))
    manifest = manifest_of(job, model, plan)
    base = peak.reset()
    with WorkFolder(job.output, manifest, warn=warn) as work:
        try:
            state, plan = restore_parts(model.method, task, work, plan, report=report, warn=warn)
            with work.computing():
                join_parts([work.parts / name for name in state["parts"]], job, model)
        except BaseException as error:
            _give_up(work, error, warn, keep=job.options.preview is None)
            raise
        memory = {"before": base, "predicted peak": predicted, "peak": peak.read()}
        record = write_result(job, manifest, plan, state, began=began, memory=memory)
        if not job.options.keep_work:
            work.remove()
    return record


def write_result(job: Job, manifest: Mapping, plan: Plan, state: Mapping, *, began: float, memory: Mapping) -> dict:
    """Write the record of a finished output and return its content.

    Args:
        state: the number of frames "written" and the "seconds" by stage of all runs.
        began: `time.perf_counter()` at the start of this run.
        memory: bytes before and at the peak of this run, and the predicted peak.
    """
    seconds = {name: round(value, 3) for name, value in sorted(state["seconds"].items())}
    seconds["this run"] = round(time.perf_counter() - began, 3)
    manifest = {**manifest, "plan": plan.plain()}
    figures = {"frames": state["written"], "seconds": seconds, "memory": memory}
    provenance.write_record(job.output, manifest, **figures)
    return {**manifest, **figures}


def join_parts(parts: Sequence[Path], job: Job, model: Model) -> None:
    """Join the parts of a clip, in order, to its output, which appears when it is complete. Raises VideoError."""
    version = provenance.versions()[provenance.NAME]
    metadata = {"encoder_settings": f"mgld-vsr {version} seed {job.task.seed}"}
    metadata["weights"] = " ".join(f"{slot}:{value[:16]}" for slot, value in model.hashes.items())
    remove_partials(job.output)
    video.join(
        parts,
        job.output,
        source=job.task.source,
        format=job.task.format,
        span=(job.task.start, job.task.stop),
        metadata=metadata,
        overwrite=job.options.overwrite,
    )


def _give_up(work: WorkFolder, error: BaseException, warn: Log, *, keep: bool) -> None:
    """Remove a work folder that cannot be resumed, such as that of a preview; otherwise report its path."""
    if isinstance(error, FloatingPointError) or not keep or not work.saved:
        work.remove()
    else:
        warn(f"finished parts are kept in {work.path}; the same command resumes from there")


def plan_for(job: Job, model: Model, log: Log, *, begun: Mapping | None) -> tuple[Plan, int | None]:
    """Return the plan and its predicted peak in bytes (None if unknown). Raises ValueError if no plan fits.

    `begun` is the recorded plan of an interrupted run, which is kept.
    """
    method, request = model.method, job.task.request
    plan = Plan(method.levers()[0], job.options.save_every)
    resumed = resumed_plan(method, begun, part_frames=job.options.save_every)
    costs = measured_costs(method, signature=_signature(model), cache=cache_folder())

    def predict(plan: Plan) -> int | None:
        need = predicted_peak(method, plan, costs, request)
        return None if need is None else with_reserve(need + model.resident, model.device)

    budget = job.options.memory or memory_budget(model.device) or UNLIMITED
    if resumed is None:
        plan, predicted = fitting_plan(method, plan, budget, predict)
    else:
        plan, predicted = resumed, predict(resumed)
    peak = "its peak is not predicted"
    if predicted is not None:
        peak = f"predicted peak {predicted / 1e9:.2f} of {budget / 1e9:.1f} GB"
    log(f"{job.output.name}: {plan}; {peak}")
    return plan, predicted


def _signature(model: Model) -> str:
    """Return a text that identifies everything on which the measured costs of a model depend."""
    settings = {key: model.used_settings[key] for key in ("networks", "method")}
    return repr((sorted(model.hashes.items()), settings))


def made_of(job: Job, model: Model, *more: str) -> dict:
    """Return the entries of the manifest that determine the frames of an output, and those named by `more`."""
    manifest = manifest_of(job, model)
    return {key: manifest[key] for key in (*MADE_OF, *more)}


def manifest_of(job: Job, model: Model, plan: Plan | None = None) -> dict:
    """Return everything that determines the bytes of an output, as plain values."""
    task = job.task
    arguments = {name: getattr(task, name) for name in ("upscale", "seed", "start", "stop", "prompt")}
    names = [str(name) for name in task.source.names]
    return {
        "input": {
            "path": str(job.path),
            "names": names,
            "frames": task.source.frames,
            "sha256": provenance.digest(job.path, names),
        },
        "weights": {
            name: {"path": str(model.weights.files[name]), "sha256": value} for name, value in model.hashes.items()
        },
        "settings": model.used_settings,
        "arguments": arguments | {"damaged": task.source.damaged},
        "format": {name: str(value) for name, value in vars(task.format).items()},
        "plan": None if plan is None else plan.plain(),
        "hardware": hardware(model.device),
        "versions": provenance.versions(),
    }
