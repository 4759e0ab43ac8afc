"""Check this installation, this machine, weights and data sets; nothing is changed.

python scripts/doctor.py
python scripts/doctor.py --weights weights/ --data datasets/REDS4 -o results/

Prints a line per check: OK, WARN or FAIL, with a remedy. The exit status is 1 if a check fails. Needs no network.
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

from scripts.command import DEVICE, Parser, exit_status, tell
from scripts.doctor_files import FAIL, OK, ROOT, WARN, Finding, check_data, check_weights

PROGRAM = "doctor.py"
OLDEST = (3, 10)  # version of Python
PIP = f"{Path(sys.executable).name} -m pip"
INSTALL = f"{PIP} install -c constraints.txt"
GB = 10**9
LEAST_MEMORY, LITTLE_MEMORY = 1 * GB, 4 * GB
LEAST_DISK, LITTLE_DISK = 1 * GB, 10 * GB
MODULES = {
    "pytorch-lightning": "pytorch_lightning",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "PyYAML": "yaml",
    "MarkupSafe": "markupsafe",
}  # distribution: module, if other
REQUIRED = ["torch", "numpy", "omegaconf", "pytorch-lightning", "safetensors", "opencv-python-headless", "av", "jinja2"]
REQUIRED += ["rich", "tensorboardX", "pillow", "PyYAML", "filelock", "MarkupSafe"]
FIGURES, NONCOMMERCIAL = "-e '.[metrics]'", "-e '.[metrics-noncommercial]'"  # as in docs/METRICS.md
VISION = "; it brings torchvision, which must be built for this torch (docs/METRICS.md)"
OPTIONAL = {  # distribution: (module, what for, what to install, what to note)
    "tensorboard": ("tensorboard", "looking at training logs", "tensorboard", ""),
    "gradio": ("gradio", "the page of vsr-demo", "-e '.[demo]'", ""),
    "imageio-ffmpeg": ("imageio_ffmpeg", "VMAF", "imageio-ffmpeg", ""),
    "lpips": ("lpips", "LPIPS and tLPIPS", FIGURES, VISION),
    "DISTS-pytorch": ("DISTS_pytorch", "DISTS", FIGURES, VISION),
    "brisque": ("brisque", "BRISQUE", FIGURES, ""),
    "pyiqa": ("pyiqa", "MUSIQ and CLIP-IQA", NONCOMMERCIAL, VISION),
}
ENCODERS = {
    "libx264": "H.264, the default",
    "libx264rgb": "lossless H.264",
    "libx265": "HEVC, for more than 8 bits",
    "prores_ks": "ProRes",
    "ffv1": "FFV1",
}
QUIET = {"libx265": {"x265-params": "log-level=none"}}  # it writes to the terminal by itself
DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4", "mpeg2video", "prores", "ffv1")
TRIAL = """
import importlib, json, sys
for name in sys.argv[1:]:
    print(json.dumps([name, None]), flush=True)
    try:
        importlib.import_module(name)
        why = ""
    except BaseException as error:
        why = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    print(json.dumps([name, why]), flush=True)
"""


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(PROGRAM, __doc__)
    add = parser.add_argument
    add("--weights", nargs="+", type=Path, default=[], metavar="DIR", help="folders of weights (default: those here)")
    add("--data", nargs="+", type=Path, default=[], metavar="DIR", help="data sets: folders of clips (default: none)")
    add("-o", "--output", type=Path, default=Path("results"), help="where results will be written (default: results)")
    add("--device", help=DEVICE)
    add("--json", action="store_true", help="print one JSON object instead of lines")
    return parser.parse_args(words)


def check_python(args) -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info[:2] < OLDEST:
        yield Finding(FAIL, "python", f"{version}, expected 3.10 or newer", "make test PYTHON=python3.11")
    else:
        yield Finding(OK, "python", f"{version}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores")


def import_errors(modules: Iterable[str]) -> dict[str, str]:
    """Return {module: error or ""}; modules are imported in another process, which a broken library may end."""
    left, found = list(modules), {}
    while left:
        command = [sys.executable, "-c", TRIAL, *left]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]
        found |= {name: why for name, why in lines if why is not None}
        if not lines or lines[-1][1] is not None:
            return dict.fromkeys(left, "was not tried") | found
        found[lines[-1][0]] = f"ends Python with status {run.returncode}"
        left = left[left.index(lines[-1][0]) + 1 :]
    return found


def version_of(name: str) -> str | None:
    """Return the version of a distribution (OpenCV: under any of its names), or None."""
    for candidate in [name] + ["opencv-python", "opencv-contrib-python"] * (name == "opencv-python-headless"):
        try:
            return importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_packages(args) -> Iterator[Finding]:
    """Check that required packages are installed and can be imported."""
    why = import_errors(MODULES.get(name, name) for name in REQUIRED)
    for name in REQUIRED:
        version, reason = version_of(name), why[MODULES.get(name, name)]
        if not reason:
            yield Finding(OK, name, version or "imports, though not installed by pip")
        elif version is None:
            yield Finding(FAIL, name, "not installed", f"{INSTALL} {name}")
        else:
            yield Finding(FAIL, name, f"{version} does not import: {reason}", f"{INSTALL} --force-reinstall {name}")


def check_versions(args) -> Iterator[Finding]:
    """Compare installed versions with those that this release was tested with."""
    tested = tested_versions((ROOT / "constraints.txt").read_text(encoding="utf-8"), sys.version_info[:2])
    same = 0
    for name, version in ((name, version_of(name)) for name in tested):
        if version and version.split("+")[0] == tested[name]:
            same += 1
        elif version:
            text = f"{version}, tested with {tested[name]}"
            yield Finding(WARN, f"version of {name}", text, f"{INSTALL} {name}=={tested[name]}")
    yield Finding(OK, "versions", f"{same} packages are as tested (constraints.txt)")


def tested_versions(text: str, python: tuple[int, int]) -> dict[str, str]:
    """Return {distribution: version} of a constraints file, for a version of Python."""
    form = r"([\w.-]+)==([^;\s]+)\s*(?:;\s*python_version\s*(<|>=)\s*[\"'](\d+)\.(\d+)[\"'])?\s*$"
    lines = [match.groups() for line in text.splitlines() if (match := re.match(form, line))]
    return {
        name: version
        for name, version, relation, major, minor in lines
        if relation is None or (python >= (int(major), int(minor))) == (relation == ">=")
    }


def check_optional(args) -> Iterator[Finding]:
    """Check optional packages; an installed torchvision must match torch."""
    installed = {name: module for name, (module, *_) in OPTIONAL.items() if version_of(name)}
    vision = ["torchvision"] if version_of("torchvision") else []
    why = import_errors([*installed.values(), *vision])
    for name, (module, purpose, wanted, note) in OPTIONAL.items():
        install = f"{INSTALL} {wanted}"
        if name not in installed:
            yield Finding(WARN, name, f"not installed, only needed for {purpose}{note}", install)
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
    name, threads = hardware(device)["name"], torch.get_num_threads()
    if device == "cpu" and build != "CPU" and args.device is None:
        text = f"{name}; torch is built for {build} but sees no card"
        yield Finding(WARN, "device", text, "see what nvidia-smi says")
    else:
        yield Finding(OK, "device", f"{device}, {name}, {threads} thread{'s' * (threads > 1)}")
    for place in dict.fromkeys(["cpu", device]):
        free = free_memory(place)
        if free is None:
            text = "the system does not report free memory"
            yield Finding(WARN, f"memory of {place}", text, "name a limit with --memory 8G")
        else:
            fix = "close other programs, or use smaller pieces: upscale.py --preview 2s says what a clip takes"
            yield amount(f"memory of {place}", free, LEAST_MEMORY, LITTLE_MEMORY, fix)


def amount(what: str, free: int, least: int, little: int, fix: str) -> Finding:
    status = FAIL if free < least else WARN if free < little else OK
    return Finding(status, what, f"{free / GB:.1f} GB free", "" if status == OK else fix)


def check_disk(args) -> Iterator[Finding]:
    """Check space and permissions for results, caches and temporary files."""
    from ldm.engine.plan import cache_folder

    where = {"results": args.output, "cache": cache_folder(), "temporary files": Path(tempfile.gettempdir())}
    for what, folder in where.items():
        parent = next((path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()), None)
        if parent is None or not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            other = "-o" if what == "results" else "MGLDVSR_CACHE or TMPDIR"
            fix = f"give the right to write there, or name another place by {other}"
            yield Finding(FAIL, f"disk for {what}", f"{folder}: cannot be written to", fix)
        elif what != "cache":
            fix = "free some; 1000 frames of 1280x720 take about 1.5 GB as PNG"
            yield amount(f"disk for {what}", shutil.disk_usage(parent).free, LEAST_DISK, LITTLE_DISK, fix)


def check_codecs(args) -> Iterator[Finding]:
    """Check encoders by encoding a frame, and decoders by name."""
    import av

    fix = f"{INSTALL} --force-reinstall --only-binary av av: the wheel carries it, a build of one's own may not"
    for name, purpose in ENCODERS.items():
        why = encoder_error(name)
        yield Finding(FAIL if why else OK, f"encoder {name}", why or purpose, fix if why else "")
    missing = [name for name in DECODERS if codec(av, name, "r") is None]
    text = f"without {', '.join(missing)}" if missing else ", ".join(DECODERS)
    yield Finding(WARN if missing else OK, "decoders", text, fix if missing else "")


def codec(av, name: str, mode: str):
    try:
        return av.codec.Codec(name, mode)
    except (ValueError, av.FFmpegError):  # for unknown names, one or the other by version
        return None


def encoder_error(name: str) -> str:
    """Return the error of an encoder for one frame; "" if it works."""
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
        packets = [*context.encode(frame.reformat(format=context.pix_fmt)), *context.encode(None)]
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
    """Generate the findings of all checks; a check that fails to run is also a finding."""
    for name, check in CHECKS.items():
        try:
            yield from check(args)
        except ImportError as error:
            yield Finding(WARN, name, f"not checked: {error}", "first mend the packages that fail above")
        except Exception as error:
            text = f"not checked: {type(error).__name__}: {error}"
            yield Finding(FAIL, name, text, "report this line, or mend what it names")


def run(args: argparse.Namespace) -> int:
    found = []
    for finding in findings(args):
        found.append(finding)
        if not args.json:
            tell(finding.line())
    count = {status: sum(finding.status == status for finding in found) for status in (OK, WARN, FAIL)}
    if args.json:
        report = {"ok": not count[FAIL], "findings": [finding._asdict() for finding in found]}
        tell(*json.dumps(report, indent=1).splitlines())
    else:
        tell(", ".join(f"{number} {status}" for status, number in count.items()))
    return 1 if count[FAIL] else 0


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)))


if __name__ == "__main__":
    sys.exit(main())
