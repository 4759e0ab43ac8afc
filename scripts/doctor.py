"""Say what is right and wrong with this installation, this machine, weights and data sets; nothing is changed.

python scripts/doctor.py
python scripts/doctor.py --weights weights/ --data datasets/REDS4 -o results/

One line each, OK, WARN or FAIL, with what to do. Exit status 1 when something fails. Needs no network.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

from scripts.doctor_files import FAIL, OK, ROOT, WARN, Finding, check_data, check_weights

PROGRAM = "doctor.py"
OLDEST = (3, 10)  # version of Python
PIP = f"{Path(sys.executable).name} -m pip"
INSTALL = f"{PIP} install -c constraints.txt"
GB = 10**9
LEAST_MEMORY, LITTLE_MEMORY = 1 * GB, 4 * GB
LEAST_DISK, LITTLE_DISK = 1 * GB, 10 * GB
REQUIRED = {  # distribution: module
    "torch": "torch",
    "numpy": "numpy",
    "omegaconf": "omegaconf",
    "pytorch-lightning": "pytorch_lightning",
    "safetensors": "safetensors",
    "opencv-python-headless": "cv2",
    "av": "av",
    "rich": "rich",
    "tensorboardX": "tensorboardX",
}
FIGURES, NONCOMMERCIAL = "-e '.[metrics]'", "-e '.[metrics-noncommercial]'"  # as in docs/METRICS.md
VISION = "; it brings torchvision, which must be built for this torch (docs/METRICS.md)"
QUIET = {"libx265": {"x265-params": "log-level=none"}}  # it writes to the terminal by itself
OPTIONAL = {  # distribution: (module, what for, what to install, what to mind)
    "matplotlib": ("matplotlib", "the curves of benchmark reports", "matplotlib", ""),
    "tensorboard": ("tensorboard", "looking at training logs", "tensorboard", ""),
    "imageio-ffmpeg": ("imageio_ffmpeg", "VMAF", "imageio-ffmpeg", ""),
    "lpips": ("lpips", "LPIPS and tLPIPS", FIGURES, VISION),
    "DISTS-pytorch": ("DISTS_pytorch", "DISTS", FIGURES, VISION),
    "brisque": ("brisque", "BRISQUE", FIGURES, ""),
    "pyiqa": ("pyiqa", "MUSIQ and CLIP-IQA", NONCOMMERCIAL, VISION),
}
ENCODERS = {
    "libx264": "H.264, what is written by default",
    "libx264rgb": "lossless H.264",
    "libx265": "HEVC, for more than 8 bits",
    "prores_ks": "ProRes",
    "ffv1": "FFV1",
}
DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4", "mpeg2video", "prores", "ffv1")
TRIAL = """
import importlib, json, sys
for name in sys.argv[1:]:
    print(json.dumps([name, None]), flush=True)
    try:
        importlib.import_module(name)
        said = ""
    except BaseException as error:
        said = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    print(json.dumps([name, said]), flush=True)
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message):
        raise ValueError(f"{message} (--help lists the options)")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--weights", nargs="+", type=Path, default=[], metavar="DIR", help="folders of weights (default: those here)")
    add("--data", nargs="+", type=Path, default=[], metavar="DIR", help="data sets: folders of clips (default: none)")
    add("-o", "--output", type=Path, default=Path("results"), help="where results will be written (default: results)")
    add("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    add("--json", action="store_true", help="print one JSON object instead of lines")
    return parser.parse_args(words)


def check_python(args) -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info[:2] < OLDEST:
        yield Finding(FAIL, "python", f"{version}, expected 3.10 or newer", "make test PYTHON=python3.11")
    else:
        yield Finding(OK, "python", f"{version}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores")


def tried(modules: Iterable[str]) -> dict[str, str]:
    """{module: '' or why it cannot be imported}, tried in a process of its own, which a broken library may kill."""
    left, found = list(modules), {}
    while left:
        command = [sys.executable, "-c", TRIAL, *left]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]
        found |= {name: why for name, why in lines if why is not None}
        if not lines or lines[-1][1] is not None:
            found |= {name: "was not tried" for name in left if name not in found}
            break
        found[lines[-1][0]] = f"ends Python with status {run.returncode}"
        left = left[left.index(lines[-1][0]) + 1 :]
    return found


def version_of(name: str) -> str | None:
    """The version of a distribution; OpenCV under any of its names."""
    names = [name] + ["opencv-python", "opencv-contrib-python"] * (name == "opencv-python-headless")
    for candidate in names:
        try:
            return importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_packages(args) -> Iterator[Finding]:
    """What must be there, and imports."""
    why = tried(REQUIRED.values())
    for name, module in REQUIRED.items():
        version, reason = version_of(name), why[module]
        if not reason:
            yield Finding(OK, name, version or "imports, though not installed by pip")
        elif version is None:
            yield Finding(FAIL, name, "not installed", f"{INSTALL} {name}")
        else:
            yield Finding(FAIL, name, f"{version} does not import: {reason}", f"{INSTALL} --force-reinstall {name}")


def check_versions(args) -> Iterator[Finding]:
    """Whether installed packages are those this release was tested with."""
    tested = tested_versions((ROOT / "constraints.txt").read_text(encoding="utf-8"), sys.version_info[:2])
    installed = {name: version_of(name) for name in tested}
    same = [name for name, version in installed.items() if version and version.split("+")[0] == tested[name]]
    for name, version in installed.items():
        if version and name not in same:
            text = f"{version}, tested with {tested[name]}"
            yield Finding(WARN, f"version of {name}", text, f"{INSTALL} {name}=={tested[name]}")
    yield Finding(OK, "versions", f"{len(same)} packages are as tested (constraints.txt)")


def tested_versions(text: str, python: tuple[int, int]) -> dict[str, str]:
    """{distribution: version} of a constraints file, for a version of Python."""
    found = {}
    for line in text.splitlines():
        fits = re.match(r"([\w.-]+)==([^;\s]+)\s*(?:;\s*python_version\s*(<|>=)\s*[\"'](\d+)\.(\d+)[\"'])?\s*$", line)
        if fits:
            name, version, relation, major, minor = fits.groups()
            newer = relation is None or python >= (int(major), int(minor))
            if relation is None or newer == (relation == ">="):
                found[name] = version
    return found


def check_optional(args) -> Iterator[Finding]:
    """What some figures and pages need; and torchvision, which must fit torch or be absent."""
    here = {name: module for name, (module, *_) in OPTIONAL.items() if version_of(name)}
    vision = {"torchvision": "torchvision"} if version_of("torchvision") else {}
    why = tried((here | vision).values())
    for name, (module, purpose, wanted, mind) in OPTIONAL.items():
        install = f"{INSTALL} {wanted}"
        if name not in here:
            yield Finding(WARN, name, f"not installed, only needed for {purpose}{mind}", install)
        elif why[module]:
            yield Finding(WARN, name, f"{version_of(name)} does not import: {why[module]} ({purpose})", install)
        else:
            yield Finding(OK, name, f"{version_of(name)}, for {purpose}")
    if vision and why["torchvision"]:
        text = f"{version_of('torchvision')} does not import, and breaks what looks for it: {why['torchvision']}"
        yield Finding(FAIL, "torchvision", text, f"{PIP} uninstall torchvision")


def check_device(args) -> Iterator[Finding]:
    import torch

    from ldm.engine.device import free_memory, hardware, usable_device

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "HIP" if torch.version.hip else "CPU"
    yield Finding(OK, "torch build", build)
    try:
        device = usable_device(args.device)
    except ValueError as error:
        yield Finding(FAIL, "device", str(error), "name one that works, such as --device cpu")
        return
    name = hardware(device)["name"]
    if device == "cpu" and build != "CPU" and args.device is None:
        yield Finding(
            WARN, "device", f"{name}; torch is built for {build} but sees no card", "see what nvidia-smi says"
        )
    else:
        threads = torch.get_num_threads()
        yield Finding(OK, "device", f"{device}, {name}, {threads} thread{'s' * (threads > 1)}")
    for place in dict.fromkeys(["cpu", device]):
        free = free_memory(place)
        if free is None:
            yield Finding(WARN, f"memory of {place}", "nobody says how much is free", "name a limit with --memory 8G")
        else:
            fix = "close other programs, or use smaller pieces: upscale.py --preview 2s says what a clip takes"
            yield amount(f"memory of {place}", free, LEAST_MEMORY, LITTLE_MEMORY, fix)


def amount(what: str, free: int, least: int, little: int, fix: str) -> Finding:
    status = FAIL if free < least else WARN if free < little else OK
    return Finding(status, what, f"{free / GB:.1f} GB free", "" if status == OK else fix)


def check_disk(args) -> Iterator[Finding]:
    """Room and permission where results, caches and temporary files go."""
    from ldm.engine.plan import cache_folder

    where = {"results": args.output, "cache": cache_folder(), "temporary files": Path(tempfile.gettempdir())}
    for what, folder in where.items():
        there = next((path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()), None)
        if there is None or not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            other = "-o" if what == "results" else "MGLDVSR_CACHE or TMPDIR"
            fix = f"give the right to write there, or name another place by {other}"
            yield Finding(FAIL, f"disk for {what}", f"{folder}: cannot be written to", fix)
        elif what != "cache":
            fix = "free some; 1000 frames of 1280x720 take about 1.5 GB as PNG"
            yield amount(f"disk for {what}", shutil.disk_usage(there).free, LEAST_DISK, LITTLE_DISK, fix)


def check_codecs(args) -> Iterator[Finding]:
    """Encoders by encoding a frame, decoders by name."""
    import av

    fix = f"{INSTALL} --force-reinstall --only-binary av av: the wheel carries it, a build of one's own may not"
    for name, purpose in ENCODERS.items():
        why = encodes(name)
        yield Finding(FAIL if why else OK, f"encoder {name}", why or purpose, fix if why else "")
    missing = [name for name in DECODERS if not codec(av, name, "r")]
    said = f"without {', '.join(missing)}" if missing else ", ".join(DECODERS)
    yield Finding(WARN if missing else OK, "decoders", said, fix if missing else "")


def codec(av, name: str, mode: str):
    try:
        return av.codec.Codec(name, mode)
    except (ValueError, av.FFmpegError):  # unknown names are both, by version
        return None


def encodes(name: str) -> str:
    """'' where an encoder makes packets of two frames, else what went wrong."""
    import av
    import numpy as np

    found = codec(av, name, "w")
    if found is None:
        return "not in this FFmpeg"
    try:
        context = av.codec.CodecContext.create(name, "w")
        context.options = QUIET.get(name, {})
        context.width, context.height, context.time_base = 64, 64, 1
        context.pix_fmt = found.video_formats[0].name
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        packets = [
            packet for picture in (frame.reformat(format=context.pix_fmt), None) for packet in context.encode(picture)
        ]
        return "" if any(packet.size for packet in packets) else "makes no packets"
    except (av.FFmpegError, ValueError, OSError) as error:
        return f"does not work: {error}"


CHECKS = {
    "python": check_python,
    "packages": check_packages,
    "versions": check_versions,
    "optional packages": check_optional,
    "device": check_device,
    "disk": check_disk,
    "codecs": check_codecs,
    "weights": check_weights,
    "data": check_data,
}


def findings(args: argparse.Namespace) -> Iterator[Finding]:
    """What every check finds; one that cannot be done is a finding, too."""
    for name, check in CHECKS.items():
        try:
            yield from check(args)
        except ImportError as error:
            yield Finding(WARN, name, f"not checked: {error}", "first mend the packages that fail above")
        except Exception as error:
            text = f"not checked: {type(error).__name__}: {error}"
            yield Finding(FAIL, name, text, "report this line, or mend what it names")


def main(words: list[str] | None = None) -> int:
    try:
        args = arguments(words)
    except ValueError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    found = []
    for finding in findings(args):
        found.append(finding)
        if not args.json:
            print(finding.line(), flush=True)
    failed = sum(finding.status == FAIL for finding in found)
    if args.json:
        print(json.dumps({"ok": not failed, "findings": [finding._asdict() for finding in found]}, indent=1))
    else:
        warned = sum(finding.status == WARN for finding in found)
        print(f"{len(found) - failed - warned} OK, {warned} WARN, {failed} FAIL")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
