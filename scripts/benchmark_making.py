"""What scripts/benchmark.py makes before it scores: degraded, enlarged and restored clips. All of it resumes."""

import argparse
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ldm import checkpoint, video
from ldm.engine import provenance
from ldm.engine.assemble import build_method
from ldm.engine.device import usable_device
from ldm.engine.jobs import Job, Model, Wishes, manifest_of, plan_for, prepare, restore_job
from ldm.engine.resume import differences
from ldm.nets.raft import RAFT
from ldm.ops.resize import resize
from scripts import degrade, upscale
from scripts.benchmark_sets import Clip

DECIDING = ("input", "weights", "settings", "arguments", "versions")  # of a manifest: what decides frames


@dataclass(frozen=True)
class Degrader:
    """Makes LQ clips of the truth by scripts/degrade.py's code, in a folder that protocol and seed decide."""

    protocol: str
    seed: int
    root: Path
    most: int | None = None
    scale: int | None = None

    def made(self, truths: Mapping[str, Path], report: Callable[[str, int, int], None]) -> tuple[dict[str, Path], str]:
        """Folders of LQ frames by clip, and how they were made in words. Clips that are there are left alone."""
        words = ["-i", ".", "-o", str(self.root), "--protocol", self.protocol, "--seed", str(self.seed)]
        words += ["--max_frames", str(self.most)] if self.most else []
        words += ["--scale", str(self.scale)] if self.scale else []
        args = degrade.arguments(words)
        settings = degrade.config.plain(degrade.read_settings(args).degradation)
        digest = hashlib.sha256(json.dumps([settings, self.seed, self.most], sort_keys=True).encode()).hexdigest()[:8]
        args.output = self.root / f"{Path(self.protocol).stem}-seed{self.seed}-{digest}"
        maker = degrade.maker_of(args)
        for name, path in truths.items():
            maker.make(path, name, lambda done, total, name=name: report(name, done, total))
        hashes = "".join(maker.manifest.clips[name]["sha256"] for name in truths)
        pixels = hashlib.sha256(hashes.encode()).hexdigest()[:16]
        told = f"{Path(self.protocol).stem}, seed {self.seed}, settings {digest}, pixels {pixels}"
        return {name: args.output / name for name in truths}, told


def raft_flow(file: Path, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """RAFT with the 20 iterations that papers measure with, loaded at first use; frames (1, 3, H, W) in [0, 1]."""

    @functools.cache
    def network() -> RAFT:
        raft = RAFT(iterations=20)
        checkpoint.load(raft, checkpoint.read(file))
        return raft.to(device)

    @torch.inference_mode()
    def flow(one: Tensor, other: Tensor) -> Tensor:
        return network()(one.to(device), other.to(device)).cpu()

    return flow


def enlarged(clip: Clip, output: Path, report: Callable[[int, int], None]) -> Path:
    """The LQ enlarged by bicubic interpolation, the field's baseline; an output of the same frames is left alone."""
    names = clip.lq.names[: clip.frames]
    about = {"sha256": provenance.digest(clip.lq.path, names), "frames": clip.frames, "size": list(clip.size)}
    beside = provenance.beside(output)
    if output.exists() and _read(beside).get("input") == about:
        return output
    if output.parent.is_dir():
        degrade.remove_partials(output)
    with video.open_writer(output, size=clip.size, names=names or None, overwrite=True) as writer:
        for number, frame in enumerate(video.read(clip.lq, 0, clip.frames, as_rgb8=True), 1):
            small = torch.from_numpy(frame).permute(2, 0, 1).float() / 255
            writer.write(resize(small, clip.size).clamp(0, 1))
            report(number, clip.frames)
    provenance.record(output, {"input": about, "weights": {}})
    return output


def _read(record: Path) -> dict:
    """A JSON, empty where it cannot be read."""
    try:
        return dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


class Restorer:
    """Restores clips with a model by the engine of scripts/upscale.py, seed by seed, into OUT/seedN/CLIP."""

    def __init__(self, args: argparse.Namespace, files: Mapping[str, Path], say: Callable, tell: Callable):
        self.args, self.say, self.tell = args, say, tell
        device = usable_device(args.device)
        self.settings = upscale.choose_settings(files, args)
        method = build_method(self.settings, files, device=device)
        if args.compile:
            method.compile_networks()
        self.model = Model.of(method, files, self.settings, device, rounding=upscale.rounding_of(self.settings))

    def restored(self, clip: Clip, output: Path, how: tuple[int, int], title: str) -> tuple[Path, dict]:
        """The frames of a clip by seed and scale, and their record; gone on with where a run was stopped.

        Raises ValueError for an output that was made otherwise.
        """
        seed, scale = how
        memory = upscale.parse_bytes(self.args.memory) if self.args.memory else None
        wishes = Wishes(upscale=scale, seed=seed, save_every=self.args.save_every, memory=memory, overwrite=True)
        if clip.frames < clip.lq.frames:
            wishes = replace(wishes, max_frames=clip.frames)
        job = prepare(Job(clip.lq.path, output), wishes, say=self.say)
        if (record := self._finished(job)) is not None:
            return output, record
        with upscale.progress_bar(title) as report:
            return output, restore_job(job, self.model, report=report, say=self.say, tell=self.tell)

    def _finished(self, job: Job) -> dict | None:
        """The record of an output that is there and is what would be made now."""
        beside = provenance.beside(job.output)
        if not (job.output.exists() and beside.is_file()):
            return None
        try:
            record = json.loads(beside.read_text(encoding="utf-8"))
            was = {key: record[key] for key in DECIDING}
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{beside}: not a record of an output; remove it and {job.output}") from None
        plan, _ = plan_for(job, self.model, lambda line: None)
        now = json.loads(json.dumps(manifest_of(job, self.model, plan)))
        if found := differences(_lasting(was), _lasting({key: now[key] for key in was})):
            what = "; ".join(found[:2])
            raise ValueError(f"{job.output}: made with {what}; choose another -o, or remove it to make it anew")
        return record


def _lasting(manifest: Mapping) -> dict:
    """A manifest without places on this machine."""
    inside = manifest["input"] | {"path": ""}
    weights = {slot: {"sha256": entry["sha256"]} for slot, entry in manifest["weights"].items()}
    return {**manifest, "input": inside, "weights": weights}


def rates(records: Iterable[Mapping]) -> tuple[float | None, int | None]:
    """Seconds a frame over all records, and the greatest memory in bytes."""
    records = list(records)
    frames = sum(record["frames"] for record in records)
    seconds = sum(record["seconds"]["this run"] for record in records)
    peak = max((record["memory"]["peak"] for record in records), default=None)
    return (round(seconds / frames, 3) if frames else None), peak
