"""The released command that makes training data for the sequence decoder: restored frames and latents.

Every folder of frames in --seqs-path becomes OUTDIR/FOLDER/NAME.png and LATENT_DIR/FOLDER/NAME.npy: float32 (4, h, w),
scaled, of the centre square of --input_size (512) pixels. The released form of the guidance with scale -1, no tiles.
Differences: an incomplete last chunk is padded with its last frame instead of dropped; the noise of a sequence is drawn
from --seed plus its number, since the released random numbers also depend on the construction of the networks; sides
that are not multiples of 32 are resized by the Lanczos kernel of OpenCV instead of Pillow.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

import cv2
import numpy as np
import torch

from ldm import video
from ldm.diffusion.noise import ReleasedNoise, sequential
from ldm.engine.assemble import Weights, build_method
from ldm.engine.restoring import rounding_of
from ldm.files import atomic_file
from ldm.methods.mgld.released import ReleasedMGLD
from ldm.methods.progress import Tally
from ldm.ops.flow import estimate_motion
from ldm.ops.resize import resize
from scripts import upscale_jobs
from scripts import vsr_val_ddpm_text_T_vqganfin_oldcanvas_tile as tiles
from scripts.command import exit_status, progress_bar, tell

PROGRAM = Path(__file__).name
STEPS, MULTIPLE, GUIDANCE_SCALE = 200, 32, -1.0
Restored = tuple[torch.Tensor, torch.Tensor]  # latents (T, c, h, w) and frames (T, 3, H, W) in [0, 1], on the CPU


def prepare(frame: np.ndarray, size: int) -> torch.Tensor:
    """(h, w, 3) uint8 -> (3, size, size) in [0, 1]: sides to multiples of 32, short side to `size`, centre square."""
    h, w = (max(side // MULTIPLE, 1) * MULTIPLE for side in frame.shape[:2])
    if (h, w) != frame.shape[:2]:
        frame = cv2.resize(frame, (w, h), interpolation=cv2.INTER_LANCZOS4)
    x = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).float() / 255
    h, w = (size * side // min(h, w) for side in (h, w))
    x = resize(x, (h, w), mode="bilinear").clamp(0, 1)
    top, left = round((h - size) / 2), round((w - size) / 2)
    return x[:, top : top + size, left : left + size]


def restore_chunk(method: ReleasedMGLD, pictures: torch.Tensor, source: ReleasedNoise, progress) -> Restored:
    """Sample and decode frames (1, T, 3, H, W) in [0, 1] that are enlarged already."""
    frames = pictures.shape[1]
    run = method.segment_restoration(sequential(source, frames), Tally(progress, {}))
    with run.codec.autocast():
        moments, _ = run.codec.sequence_decoder.encode(pictures[0] * 2 - 1)
    posterior = run.codec.autoencoder.posterior(moments.float())
    shape = posterior.mean.shape[1:]
    z = posterior.sample(run.noise("posterior", range(frames), shape).to(pictures))[None] * method.scale_factor
    motion = estimate_motion(run.flow, pictures, size=(shape[1], shape[2]))
    x, out = run.restore_encoded(z, pictures, motion)
    return x[0].cpu(), ((out[0].cpu() + 1) / 2).clamp(0, 1)


@torch.no_grad()
def restore_sequence(method: ReleasedMGLD, lq: torch.Tensor, *, seed: int, progress) -> Restored:
    """All frames (T, 3, H, W) in [0, 1], chunk by chunk."""
    source, length, made = ReleasedNoise(seed), method.windows.n_frames, []
    for start in range(0, len(lq), length):
        chunk = lq[start : start + length]
        chunk = torch.cat([chunk, chunk[-1:].expand(length - len(chunk), -1, -1, -1)])
        made.append(restore_chunk(method, chunk[None].to(method.device), source, progress))
    latents, frames = (torch.cat(part)[: len(lq)] for part in zip(*made, strict=True))
    return latents, frames


def save_latents(latents: torch.Tensor, folder: Path, names: list[str]) -> None:
    """Write NAME.npy for each frame, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    for latent, name in zip(latents, names, strict=True):
        target = folder / f"{Path(name).stem}.npy"
        with atomic_file(target) as temporary:
            np.save(temporary, latent.float().numpy())


def settings_of(files: Weights, words: argparse.Namespace):
    """Return the released settings, without tiles inside a chunk."""
    words.overrides += [
        f"method.params.sampling.params.guidance_scale={GUIDANCE_SCALE}",
        "method.params.windows.params.tile=100000",
    ]
    words.flags = {name: value for name, value in words.flags.items() if not name.startswith("vqgantile_")}
    return upscale_jobs.choose_settings(files, words)


def run(args: argparse.Namespace) -> int:
    if args.latent_dir is None:
        raise ValueError("--latent-dir is missing (--help lists the options)")
    words, files, jobs = tiles.translate(args), tiles.find_files(args), tiles.find_jobs(args)
    sources = [video.probe(job.path) for job in jobs]
    settings = settings_of(files, words)
    method, rounding = build_method(settings, files, device=words.device), rounding_of(settings)
    for number, (job, source) in enumerate(zip(jobs, sources, strict=True)):
        names = list(source.names) or [f"{frame:08d}.png" for frame in range(source.frames)]
        size = (args.input_size, args.input_size)
        with video.open_writer(job.output, size=size, names=names, source=source, overwrite=True) as writer:
            lq = torch.stack([prepare(frame, args.input_size) for frame in video.read(source, as_rgb8=True)])
            with progress_bar(job.path.name) as progress:
                seed = args.seed + args.select_idx + number * args.n_gpus
                latents, frames = restore_sequence(method, lq, seed=seed, progress=progress)
            for frame in frames:
                writer.write(rounding(frame))
            save_latents(latents, args.latent_dir / job.output.name, names)
        tell(f"{job.output}, {args.latent_dir / job.output.name}: {len(lq)} frames")
    return 0


def main(words: list[str] | None = None) -> int:
    def work() -> int:
        return run(tiles.arguments(words, program=PROGRAM, description=__doc__, steps=STEPS))

    return exit_status(PROGRAM, work, explain=upscale_jobs.explain)


if __name__ == "__main__":
    sys.exit(main())
