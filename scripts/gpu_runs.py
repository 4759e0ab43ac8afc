"""Long steps of scripts/gpu_check.py: clips, compared with the released windows and tiles, and training steps."""

import contextlib
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm import config
from ldm.engine.assemble import find_preset
from ldm.methods.contract import Request
from ldm.streaming.pipeline import Frame
from scripts.clip_flops import work_of
from scripts.gpu_device import Check, each, moving_clip

ROOT = Path(__file__).resolve().parents[1]
TRAINING = {  # configurations of both stages, and what makes them small
    "stage 1": ("mgldvsr/mgldvsr_512_realbasicvsr_deg.yaml", "mgldvsr/toy_stage1.yaml"),
    "stage 2": ("video_vae/video_autoencoder_kl_64x64x4_resi.yaml", "video_vae/toy_stage2.yaml"),
}
LONG = 1000  # frames of the clip to which figures are extended


# ---- clips


def clip(check: Check) -> dict:
    """Measure a clip with our windows and the released ones, in 1 and 3 steps, and extrapolate to 4 and 50 steps."""
    ours, released = [[f"precision={word}"] for word in (("bf16", "fp16") if check.is_cuda else ("fp32", "fp32"))]
    ways = {"ours": (None, ours), "released cuts": ("released", released)}
    found = each((name, partial(both_steps, check, *way)) for name, way in ways.items())
    complete = all("per_frame" in its for its in found.values())
    for steps in ("4", "50"):
        if complete:
            found[f"ratio_{steps}"] = found["released cuts"]["per_frame"][steps] / found["ours"]["per_frame"][steps]
    return {"clip": [check.size.frames, *check.size.clip], "ways": found}


def both_steps(check: Check, preset: str | None, words: list[str]) -> dict:
    """Return seconds for 1 and 3 steps, and seconds per frame of a long clip for 4 and 50 steps.

    The time of the sampling steps is proportional to the calls of the U-Net, the other time to those of the decoder.
    """
    measured = {steps: restored(check, preset, [*words, f"sampling.params.steps={steps}"]) for steps in (1, 3)}
    method, times = measured[3].pop("method"), {steps: its["seconds"] for steps, its in measured.items()}
    measured[1].pop("method")
    a_step = (times[3] - times[1]) / 2
    rest, frames = times[1] - a_step, check.size.frames
    calls = {count: calls_of(method, check.size.clip, count) for count in (frames, LONG)}
    growth = {stage: calls[LONG][stage] / calls[frames][stage] / LONG for stage in ("sampling", "decoding")}
    per_frame = {str(n): n * a_step * growth["sampling"] + rest * growth["decoding"] for n in (4, 50)}
    levers = str(method.levers()[0])
    return {"steps": {str(k): its for k, its in measured.items()}, "per_frame": per_frame, "levers": levers}


def restored(check: Check, preset: str | None, words: list[str]) -> dict:
    """Measure a clip with random weights. Scene cuts are off, since random flow would detect one at every frame."""
    settings = check.settings if preset is None else config.merge(check.settings, find_preset(check.settings, preset))
    words = [*words, "windows.params.scene_cut=null"]
    if check.networks_size == "toy":
        words += ["min_size=16", *(["patch=64", "stride=48"] if preset else [])]
    settings = config.override(settings, [f"+method.params.{word}" for word in words])
    method = config.instantiate(settings.method, networks=check.networks)
    lq = moving_clip(check, check.size.frames, *check.size.clip)

    def run() -> None:
        pipeline = method.stream(Request(check.size.clip, len(lq)))
        for number, frame in enumerate(lq):
            pipeline.push(Frame(number, {"lq": frame[None]}))
        for frame in pipeline.pull(finish=True):
            frame["sr"].cpu()

    return check.measured(run, repeat=1) | {"method": method}


def calls_of(method, size: tuple[int, int], frames: int) -> dict[str, int]:
    """Return the numbers of calls of the U-Net in two steps, and of the decoder."""
    work = work_of(method, size, frames, steps=2)
    return {"sampling": work["unet"].calls, "decoding": work["decode"].calls}


# ---- training


def training(check: Check) -> dict:
    """Measure a training step of each stage in bf16; stage 1 also with DistributedDataParallel."""
    runs = [(stage, partial(train, check, stage)) for stage in TRAINING]
    runs.append(("stage 1, DDP", partial(train, check, "stage 1", ddp=True)))
    return {"clip": check.size.trained, "stages": each(runs)}


class Loss(nn.Module):
    """Wraps a training module so that `forward` returns the loss of a batch."""

    def __init__(self, module: nn.Module, stage: str) -> None:
        super().__init__()
        self.module, self.stage = module, stage

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        module, index = self.module, batch["index"]
        if self.stage == "stage 1":
            z_lq, z_gt = module.latents(batch)
            i, noise = module.objective.draw("train", index, z_gt)
            return module.terms(z_lq, z_gt, i, noise, frames=batch["gt"].shape[1])["loss"]
        y, last = module.reconstruct(batch), module.decoder.conv_out.weight
        return module.loss.generator(y, batch["gt"] * 2 - 1, step=0, last_layer=last, index=index)["total"]


def train(check: Check, stage: str, *, ddp: bool = False) -> dict:
    """Measure an optimizer step of a stage of `TRAINING`."""
    files = [ROOT / "configs" / name for name in TRAINING[stage]]
    settings = config.load(files[0])
    if check.networks_size == "toy":
        settings = config.merge(settings, files[1])
    with torch.device(check.device):
        module = config.instantiate(settings.model)
    module = Loss(module.to(check.device).train(), stage)
    frames, side = check.size.trained
    gt, latent = check.random(1, frames, 3, side, side), check.random(1, frames, 4, side // 8, side // 8)
    index = torch.zeros(1, dtype=torch.long, device=check.device)
    batch = {"gt": gt, "lq": gt[..., ::4, ::4].contiguous(), "latent": latent, "index": index}
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-5)
    with process_group(check) if ddp else contextlib.nullcontext():
        wrapped = nn.parallel.DistributedDataParallel(module) if ddp else module

        def step() -> None:
            with torch.autocast(check.device.type, torch.bfloat16):
                loss = wrapped(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return check.measured(step, repeat=2)


@contextlib.contextmanager
def process_group(check: Check):
    """Context with a process group of one process."""
    with tempfile.TemporaryDirectory() as folder:
        kind = "nccl" if check.is_cuda else "gloo"
        torch.distributed.init_process_group(kind, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()
