"""Nodes of ComfyUI (V3 interface) for video super-resolution: load a model, upscale a video of any length, or frames.

This folder is linked or copied into `custom_nodes` of ComfyUI; the package mgld-vsr is installed in its environment.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import ComfyExtension, InputImpl, io

from ldm import video as videos
from ldm.engine.assemble import CONFIGS, EMBEDDED
from ldm.engine.jobs import JobOptions, Model
from ldm.engine.restoring import Cancelled, model_of, restore_file, restore_frames
from ldm.methods.contract import Request
from ldm.weights.checkpoint import sha256

CATEGORY = "video/super-resolution"
SUBFOLDER = "mgld_vsr"  # of the models and of the outputs
OWN = "embedded"
NONE = "none"
PRECISIONS = ["auto", "fp32", "bf16", "fp16"]
VsrModel = io.Custom("MGLD_VSR_MODEL")
SHARED = [  # inputs of both nodes that restore
    VsrModel.Input("model"),
    io.Float.Input("upscale", default=4.0, min=0.25, max=8.0, step=0.25),
    io.Int.Input("seed", default=42, min=0, max=2**32 - 1),
]
PROMPT = io.String.Input("prompt", default="", multiline=True, tooltip="for Upscale-A-Video")


def model_folders() -> dict[str, Path]:
    """Return name -> folder of weights: the embedded model, and the folders in models/mgld_vsr."""
    places = Path(folder_paths.models_dir) / SUBFOLDER
    found = sorted(path for path in places.iterdir() if path.is_dir()) if places.is_dir() else []
    return {OWN: EMBEDDED} | {path.name: path for path in found}


def preset_names() -> list[str]:
    """Return the presets of all families, after the one that changes nothing; a model refuses those of others."""
    return [NONE, *sorted({path.stem for path in CONFIGS.glob("*/presets/*.yaml")})]


class Bar:
    """Progress bar of ComfyUI that shows the mean progress of all stages."""

    def __init__(self) -> None:
        self.bar = comfy.utils.ProgressBar(1000)
        self.done, self.total = Counter(), {}

    def report(self, stage: str, done: int, total: int | None) -> None:
        self.done[stage] = done
        if total:
            self.total[stage] = total
        parts = [self.done[name] / count for name, count in self.total.items()]
        if parts:
            self.bar.update_absolute(round(1000 * sum(parts) / len(parts)), 1000)


def interruptible(work: Callable[[], Any]) -> Any:
    """Return `work()`; a cancelled run raises the exception of ComfyUI."""
    try:
        return work()
    except Cancelled:
        comfy.model_management.throw_exception_if_processing_interrupted()
        raise


class LoadVsrModel(io.ComfyNode):
    """Load a model and its weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGLDVSRLoadModel",
            display_name="Load video super-resolution model",
            category=CATEGORY,
            description="The embedded small model, or a folder of weights in models/mgld_vsr.",
            inputs=[
                io.Combo.Input("weights", options=list(model_folders()), default=OWN),
                io.Combo.Input("preset", options=preset_names(), default=NONE),
                io.Combo.Input("precision", options=PRECISIONS, default=PRECISIONS[0]),
            ],
            outputs=[VsrModel.Output("model")],
        )

    @classmethod
    def execute(cls, weights: str, preset: str, precision: str) -> io.NodeOutput:
        folders = model_folders()
        if weights not in folders:
            raise ValueError(f"got weights {weights!r}, expected one of {', '.join(folders)}")
        if precision not in PRECISIONS:
            raise ValueError(f"got precision {precision!r}, expected one of {', '.join(PRECISIONS)}")
        device = str(comfy.model_management.get_torch_device())
        model = model_of(
            folders[weights],
            preset=None if preset == NONE else preset,
            overrides=[f"method.params.precision={precision}"],
            device=device,
        )
        model.build()
        return io.NodeOutput(model)


class UpscaleVideo(io.ComfyNode):
    """Restore a video of any length through the engine: from file to file, without holding the clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGLDVSRUpscaleVideo",
            display_name="Upscale video (any length)",
            category=CATEGORY,
            description="Streams frames from file to file; cancelled runs resume with the same inputs.",
            inputs=[
                io.Video.Input("video"),
                *SHARED,
                io.Float.Input("memory_gb", default=0.0, min=0.0, max=1024.0, step=0.5, tooltip="0: all free memory"),
                io.Int.Input("crf", default=18, min=0, max=51),
                PROMPT,
            ],
            outputs=[io.Video.Output("video")],
        )

    @classmethod
    def execute(
        cls, video: Any, model: Model, upscale: float, seed: int, memory_gb: float, crf: int, prompt: str
    ) -> io.NodeOutput:
        memory = int(memory_gb * 1e9) or None
        prompt = prompt.strip() or None
        options = JobOptions(upscale, seed, crf=crf, memory=memory, overwrite=True, prompt=prompt)
        path, bar, lines = file_of(video), Bar(), []
        output = output_for(path, model, options)
        comfy.model_management.unload_all_models()  # the planner counts the memory that is free
        stop = comfy.model_management.processing_interrupted
        job, _ = interruptible(
            lambda: restore_file(
                path, output, model, options, report=bar.report, warn=lines.append, log=lines.append, stop=stop
            )
        )
        return io.NodeOutput(InputImpl.VideoFromFile(str(job.output)), ui={"text": lines})


class UpscaleFrames(io.ComfyNode):
    """Restore the frames of a short clip, all in memory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MGLDVSRUpscaleFrames",
            display_name="Upscale frames (short clip)",
            category=CATEGORY,
            description="Holds all frames in memory; use the node for videos for more than a few seconds.",
            inputs=[io.Image.Input("frames"), *SHARED, PROMPT],
            outputs=[io.Image.Output("frames")],
        )

    @classmethod
    def execute(cls, frames: Any, model: Model, upscale: float, seed: int, prompt: str) -> io.NodeOutput:
        lq = frames[..., :3].movedim(-1, 1).float().clamp(0, 1).contiguous()
        request = Request(tuple(lq.shape[2:]), len(lq), upscale, seed, prompt.strip() or None)
        stop, bar = comfy.model_management.processing_interrupted, Bar()
        sr = interruptible(lambda: restore_frames(model.method, lq, request, report=bar.report, stop=stop))
        return io.NodeOutput(sr.movedim(1, -1).contiguous())


# ---- files


def file_of(video: Any) -> Path:
    """Return the file of a VIDEO; one in memory or trimmed is saved as a temporary file, named by its hash."""
    source = video.get_stream_source()
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not is_trimmed(video, path):
            return path
    folder = Path(folder_paths.get_temp_directory()) / SUBFOLDER
    folder.mkdir(parents=True, exist_ok=True)
    saved = folder / "received.mp4"
    if isinstance(source, (str, Path)):
        video.save_to(str(saved))
    else:
        source.seek(0)
        with saved.open("wb") as file:
            shutil.copyfileobj(source, file)
    return saved.replace(folder / f"{sha256(saved)[:32]}.mp4")


def is_trimmed(video: Any, path: Path) -> bool:
    """Whether a VIDEO has fewer frames than its file."""
    source = videos.probe(path)
    if source.frames is None or not hasattr(video, "get_duration"):
        return False
    return video.get_duration() < (source.frames - 1.5) / float(source.rate)


def output_for(path: Path, model: Model, options: JobOptions) -> Path:
    """Return the path of an output, which depends on everything that determines it, so that the same run resumes."""
    key = repr((sha256(path), sorted(model.hashes.items()), model.used_settings, options))
    folder = Path(folder_paths.get_output_directory()) / SUBFOLDER
    folder.mkdir(parents=True, exist_ok=True)
    stem = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in path.stem)[:60]
    return folder / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.mp4"


class Extension(ComfyExtension):
    """The nodes of this folder."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadVsrModel, UpscaleVideo, UpscaleFrames]


async def comfy_entrypoint() -> Extension:
    """The entry point that ComfyUI looks for."""
    return Extension()
