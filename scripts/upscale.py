"""Upscale a video, an image, a folder of images, or a folder of such clips.

python scripts/upscale.py -i clip.mp4 -o results/clip.mp4 --compare
python scripts/upscale.py -i frames/ -o results/frames --weights checkpoints/ --ddpm_steps 50

Words like method.params.windows.params.batch=2 change any setting of the model's configuration.
"""

import argparse
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

import av
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from ldm import config, video
from ldm.engine.assemble import EMBEDDED, build_method, find_weights, read_settings
from ldm.methods.mgld import COLOR_FIXES, PRECISIONS, SMALLEST_SIDE, Patches, Windows, choose, whole
from ldm.picture import comparison
from ldm.video.writing import CONTAINERS

PROGRAM = "upscale.py"
log = logging.getLogger(PROGRAM)
COPIES = 4  # float32 copies of the enlarged clip that exist at the same time (2.4 measured, and the result of reading)
ROUNDING = {
    "nearest": lambda frame: frame,  # the writer's own way
    "truncate": lambda frame: (frame * 255).to(torch.uint8).permute(1, 2, 0).numpy(),  # as released (B28)
}
SAMPLING, WINDOWS, DECODING, PATCHES = (
    f"+method.params.{part}.params" for part in ("sampling", "windows", "decoding", "patches")
)


class Job(NamedTuple):
    """One clip: where it comes from, the file or folder it goes to, and (once it was looked at) what it holds."""

    path: Path
    output: Path
    source: video.Source | None = None


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like everything else here."""

    def error(self, message):
        raise ValueError(f"{message} (--help lists the options)")


def natural(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from {least}")
    return int(text)


def positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return float(text)


counted = partial(natural, least=1)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; what the configuration decides is None where no flag was given."""
    parser = Parser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of the configuration")
    add_files(parser.add_argument_group("files"))
    add_settings(parser.add_argument_group("settings (default: what the configuration says)"))
    add_running(parser.add_argument_group("running"))
    args = parser.parse_intermixed_args(words)
    for name in ("weights", "config"):  # flags that take several words also catch overrides that follow them
        given = getattr(args, name)
        caught = [word for word in given if "=" in word and not Path(word).exists()]
        setattr(args, name, [word for word in given if word not in caught])
        args.overrides += caught
    return args


def add_files(group) -> None:
    add = group.add_argument
    add("-i", "--input", type=Path, required=True, help="video, image, folder of images, or folder of such clips")
    add("-o", "--output", type=Path, required=True, help=".mp4 .mkv .mov .png; no suffix: a folder (of PNGs, of clips)")
    add("--weights", nargs="+", default=[], metavar="PATH", help="folder or weight files (default: the embedded model)")
    add("--config", nargs="+", default=[], metavar="YAML", help="model configuration (default: that of the weights)")
    add("--preset", help="a file of configs/presets merged last, such as released (default: none)")
    add("--crf", type=natural, default=18, help="H.264 quality, 0 (best) to 51 (default: 18)")
    add("--lossless", action="store_true", help="store every pixel of a video exactly, as H.264 RGB (default: no)")
    add("--start", type=natural, default=0, help="frames to leave out at the beginning (default: 0)")
    add("--max_frames", type=counted, help="frames to restore at most (default: all)")
    add("--compare", action="store_true", help="also draw input and output into OUTPUT.compare.png (default: no)")
    add("--overwrite", action="store_true", help="replace a folder that holds PNGs; files always are (default: no)")


def add_settings(group) -> None:
    add = group.add_argument
    add("--ddpm_steps", type=counted, help="sampling steps (embedded model: 4, released: 50)")
    add("--colorfix_type", choices=list(COLOR_FIXES), help="take colours over from the input (adain)")
    add("--dec_w", type=float, help="weight of the input's features in the decoder, 0 to 1 (1.0)")
    add("--n_frames", type=counted, help="frames per temporal window (5)")
    add("--tile_overlap", type=natural, help="overlap of the denoiser's tiles, in latent pixels")
    add("--vqgantile_size", type=counted, help="side of the decoder's tiles, in pixels of the enlarged frame")
    add("--vqgantile_stride", type=counted, help="distance between those tiles, in pixels")
    add("--flow", help="optical flow: dis, raft or spynet (embedded model: dis, released: raft)")
    add("--guidance", choices=["paper", "released", "none"], help="form of the motion guidance (paper)")
    add("--precision", choices=list(PRECISIONS), help="of the networks (fp32)")


def add_running(group) -> None:
    add = group.add_argument
    add("--upscale", type=positive, default=4.0, help="output size over input size (default: 4)")
    add("--seed", type=natural, default=42, help="of the noise (default: 42)")
    add("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    add("--verbose", action="store_true", help="say more, and where in the code an error arose (default: no)")


def choose_settings(files: Mapping[str, Path], args: argparse.Namespace):
    """The configuration with preset, flags and overrides applied, in this order."""
    settings = read_settings(files, configs=args.config, preset=args.preset, flow=args.flow, overrides=args.overrides)
    return config.override(settings, [*flag_words(args, settings), *args.overrides])


def rounding_of(settings) -> Callable:
    """How frames (3, h, w) in [0, 1] are handed to the writer. Raises ValueError."""
    return choose(ROUNDING, (settings.get("output") or {}).get("rounding", "nearest"), "output.rounding")


def flag_words(args: argparse.Namespace, settings) -> list[str]:
    """Flags as `+key=value` words (with the plus, keys that the file leaves to their defaults can be set too)."""
    direct = {
        f"{SAMPLING}.steps": args.ddpm_steps,
        f"{SAMPLING}.guidance": args.guidance,
        f"{DECODING}.color_fix": args.colorfix_type,
        f"{DECODING}.dec_w": args.dec_w,
        f"{WINDOWS}.tile_overlap": args.tile_overlap,
        "+method.params.precision": args.precision,
    }
    words = [f"{key}={value}" for key, value in direct.items() if value is not None]
    parts = {name: config.instantiate(settings.method.params[name]) for name in ("sampling", "windows", "decoding")}
    patches = config.instantiate(settings.method.params.get("patches"))
    if args.guidance not in (None, parts["sampling"].guidance):
        words.append(f"{SAMPLING}.guidance_scale=null")  # each form has its own
    if args.n_frames:
        words += frame_words(args.n_frames, parts["windows"], parts["decoding"].windows)
        words += [f"{PATCHES}.n_frames={args.n_frames}"] if patches else []
    if args.vqgantile_size or args.vqgantile_stride:
        words += tile_words(args, patches or parts["decoding"].windows, settings)
    return words


def frame_words(n_frames: int, windows: Windows, decoding: Windows) -> list[str]:
    """Windows of `n_frames`, with the overlap they had as far as it fits."""
    both = {WINDOWS: windows, f"{DECODING}.windows.params": decoding}
    overlaps = [f"{key}.frame_overlap={min(old.frame_overlap, n_frames - 1)}" for key, old in both.items()]
    return [f"{key}.n_frames={n_frames}" for key in both] + overlaps


def tile_words(args: argparse.Namespace, old: Patches | Windows, settings) -> list[str]:
    """Tiles of the decoder, or the outer patches where the configuration has them; lengths in pixels."""
    params, whole_cut = settings.networks.autoencoder.get("params") or {}, isinstance(old, Patches)
    f = 2 ** (len(params.get("ch_mult", (1, 2, 4, 4))) - 1)
    was, step = (old.size, old.stride) if whole_cut else (old.tile * f, (old.tile - old.tile_overlap) * f)
    size = args.vqgantile_size or was
    stride = args.vqgantile_stride or (step if step <= size else size * step // was)
    if not f <= stride <= size:
        raise ValueError(f"got tiles of {size} pixels every {stride}, expected {f} <= stride <= size")
    if whole_cut:
        return [f"{PATCHES}.size={size}", f"{PATCHES}.stride={stride}"]
    tiles = f"{DECODING}.windows.params"
    return [f"{tiles}.tile={size // f}", f"{tiles}.tile_overlap={(size - stride) // f}"]


def find_jobs(path: Path, output: Path) -> list[Job]:
    """One job for a clip; for a folder of clips one each, to OUTPUT/NAME. Raises ValueError."""
    found = video.clips_in(path)
    if found == [path]:
        return [Job(path, output)]
    if output.suffix.lower() in (".png", *CONTAINERS):
        raise ValueError(f"{output}: got one file for {len(found)} clips, expected a folder; leave out the suffix")
    names = {child: child.name if child.is_dir() else f"{child.stem}.mp4" for child in found}
    names |= {child: child.name for child in found if child.suffix.lower() in CONTAINERS}
    twice = [name for name in names.values() if list(names.values()).count(name) > 1]
    names |= {child: f"{child.name}.mp4" for child, name in names.items() if name in twice}
    return [Job(child, output / names[child]) for child in found]


def prepare(job: Job, args: argparse.Namespace) -> Job:
    """Look at the input and try the output, so that nothing is computed in vain. Raises ValueError."""
    source = video.probe(job.path)
    if min(source.width, source.height) < SMALLEST_SIDE:
        got = f"{source.width}x{source.height}"
        raise ValueError(f"{job.path}: got {got}, expected at least {SMALLEST_SIDE} pixels a side")
    if source.frames is not None and args.start >= source.frames:
        raise ValueError(f"{job.path}: got --start {args.start}, expected less than its {source.frames} frames")
    job = job._replace(source=source)
    with contextlib.suppress(DryRun), open_output(job, args):
        raise DryRun
    if source.kind == "video" and has_sound(job.path):
        say(f"{job.path}: its sound is not carried over")
    return job


class DryRun(Exception):
    """Ends the attempt to open an output, so that what was made for it is removed again."""


def open_output(job: Job, args: argparse.Namespace) -> video.Writer:
    source, keep = job.source, slice(*span(args))
    size = (whole(source.height * args.upscale), whole(source.width * args.upscale))
    options = {"rate": source.rate, "names": source.names[keep], "source": source, "overwrite": args.overwrite}
    return video.open_writer(job.output, size=size, crf=args.crf, lossless=args.lossless, **options)


def span(args: argparse.Namespace) -> tuple[int, int | None]:
    """First frame, and the one after the last (None: to the end)."""
    return args.start, args.start + args.max_frames if args.max_frames else None


def has_sound(path: Path) -> bool:
    with av.open(str(path)) as container:
        return bool(container.streams.audio)


def check_memory(job: Job, args: argparse.Namespace, *, min_size: int, weights: int, device: str) -> Job:
    """The job, or ValueError saying how many of its frames fit into memory beside `weights` bytes."""
    source, free = job.source, free_memory(device)
    if free is None or source.frames is None:
        return job
    scale = max(min_size / min(source.height, source.width), args.upscale)
    each = source.height * source.width * scale**2 * 3 * 4 * COPIES
    frames, fit = len(range(source.frames)[slice(*span(args))]), max(int((free - weights) / each), 0)
    if frames > fit:
        need = f"{frames} frames need about {(weights + frames * each) / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        raise ValueError(f"{job.path}: {need}; " + (f"--max_frames {fit} fits" if fit else "lower --upscale"))
    return job


def free_memory(device: str) -> int | None:
    """Bytes that can be taken on a device, None where nobody says."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(dict(line.split(":") for line in lines)["MemAvailable"].split()[0]) * 1024
    return None


def usable_device(name: str | None) -> str:
    """A device that works; by default the graphics card where there is one. Raises ValueError."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"got device {name!r}, expected cpu or one that works here ({first_line(error)})") from None
    return name


def restore_clip(job: Job, args: argparse.Namespace, *, method, rounding: Callable) -> Job:
    """Read, restore, write; the output appears when it is whole."""
    began, (start, stop) = time.perf_counter(), span(args)
    with open_output(job, args) as writer:
        lq = video.read_clip(job.source, start=start, stop=stop)
        with progress_bar(job.path.name) as progress:
            sr = method.restore(lq, upscale=args.upscale, seed=args.seed, progress=progress).cpu()
        for frame in sr:
            writer.write(rounding(frame))
        if args.compare:
            save_picture(comparison(lq, sr), compare_path(job.output))
    seconds, (height, width) = time.perf_counter() - began, sr.shape[-2:]
    took = f"{seconds:.1f} s, {seconds / len(sr):.2f} s per frame"
    print(f"{job.output}: {len(sr)} frames of {width}x{height}, {took}", flush=True)
    return job


def compare_path(output: Path) -> Path:
    return output.with_name(f"{output.stem if output.suffix else output.name}.compare.png")


def save_picture(picture, path: Path) -> None:
    with video.open_writer(path, size=picture.shape[:2]) as writer:
        writer.write(picture)


@contextlib.contextmanager
def progress_bar(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar per stage with the time left, on a terminal only; yields report(stage, done, total)."""
    console = Console(stderr=True)
    times = (TimeElapsedColumn(), "left", TimeRemainingColumn())
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), *times)
    options = {"console": console, "transient": True, "disable": not console.is_terminal}
    with Progress(*columns, speed_estimate_period=600, **options) as bar:
        tasks, ends = {"sampling": bar.add_task(f"{name}: sampling", total=None)}, {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(f"{name}: {stage}", total=None)
            if done == 1:  # of the first, or of another patch: its steps come on top
                ends[stage] = ends.get(stage, 0) + total
            bar.update(tasks[stage], completed=ends[stage] - total + done, total=ends[stage])

        yield report


def restore_all(jobs: list[Job], find_files: Callable[[], Mapping[str, Path]], args: argparse.Namespace) -> int:
    """Restore every job, with weights that are looked for once the inputs are known to be good; the exit status."""
    attempt = partial(keep_going, alone=len(jobs) == 1)
    good = attempt(jobs, partial(prepare, args=args))
    if good:
        files, device = find_files(), usable_device(args.device)
        settings = choose_settings(files, args)
        rounding = rounding_of(settings)
        room = {
            "min_size": settings.method.params.get("min_size", 512),
            "weights": sum(path.stat().st_size for path in files.values() if path.is_file()),
        }
        good = attempt(good, partial(check_memory, args=args, device=device, **room))
    if good:
        method = build_method(settings, files, device=device)
        good = attempt(good, partial(restore_clip, args=args, method=method, rounding=rounding))
    if failed := len(jobs) - len(good):
        say(f"{failed} of {len(jobs)} inputs failed")
    return 2 if failed else 0


def keep_going(jobs: list[Job], action: Callable[[Job], Job], *, alone: bool) -> list[Job]:
    """The jobs that `action` could do; a failure is reported, or raised where the job is the only one."""
    done = []
    for job in jobs:
        try:
            done.append(action(job))
        except Exception as error:
            if alone or (line := explain(error)) is None:
                raise
            say(line if str(job.path) in line else f"{job.path}: {line}")
    return done


def say(line: str) -> None:
    print(f"{PROGRAM}: {line}", file=sys.stderr, flush=True)


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def explain(error: Exception) -> str | None:
    """One line for what a person or a machine can cause; None for a mistake in the code, whose traceback is wanted."""
    log.debug("where the error arose", exc_info=error)
    text = first_line(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in text:
        return "out of memory; try fewer frames (--max_frames), smaller tiles (--vqgantile_size) or --precision bf16"
    return text if isinstance(error, (ValueError, OSError, FloatingPointError)) else None


def exit_status(work: Callable[[], int]) -> int:
    """What work() returns; 2 after one line for an error, 130 after Ctrl-C. Bugs keep their traceback."""
    logging.basicConfig(level=logging.WARNING, format=f"{PROGRAM}: %(message)s")
    try:
        return work()
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except Exception as error:
        if (line := explain(error)) is None:
            raise
        say(line)
        return 2


def run(args: argparse.Namespace) -> int:
    if args.verbose:
        log.setLevel(logging.DEBUG)
    jobs = find_jobs(args.input, args.output)
    return restore_all(jobs, lambda: find_weights(*args.weights or (EMBEDDED,)), args)


def main(words: list[str] | None = None) -> int:
    return exit_status(lambda: run(arguments(words)))


if __name__ == "__main__":
    sys.exit(main())
