"""A benchmark's results as scripts/benchmark.py writes them, small and drawn here, for the tests of the report."""

import json

import cv2
import numpy as np

from ldm import video
from ldm.engine import provenance
from tests.scripts import toy

METHODS = {"ours": [42, 43], "other": [None]}
SIZE = (48, 64)
METRICS = [
    {"name": "psnr", "label": "PSNR (dB)", "protocol": "RGB, all pixels", "better": "higher", "per": "frame",
     "of": None},
    {"name": "e_warp", "label": "E_warp", "protocol": "DIS on the truth", "better": "lower", "per": "pair",
     "of": None},
    {"name": "e_warp_truth", "label": "E_warp, truth", "protocol": "its own", "better": "lower", "per": "pair",
     "of": "e_warp"},
    {"name": "lpips", "label": "LPIPS", "protocol": "alex", "better": "lower", "per": "frame", "of": None},
]  # fmt: skip


def write_clip(path, frames):
    with video.open_writer(path, size=frames[0].shape[:2], rate=25, lossless=bool(path.suffix)) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def make_results(folder, clips=("000", "011"), frames=6, lossless=".mkv", tint=None):
    """Write results.json and the clips it names (folders of PNGs, the truth a lossless video) and return its content.

    `tint` {role: (r, g, b)}: one colour for all pixels of "lq", "gt" or a method, so that a picture can be told.
    """
    folder.mkdir(parents=True)
    tint = tint or {}
    described, rows, curves = [], [], []
    for number, name in enumerate(clips):
        truth = [np.roll(frame, 3 * number, axis=1) for frame in toy.make_frames(frames, *SIZE)]
        coloured = {role: [np.full_like(truth[0], colour)] * frames for role, colour in tint.items()}
        small = [cv2.resize(frame, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
                 for frame in coloured.get("lq", truth)]  # fmt: skip
        lq, gt = f"lq/{number}", f"gt/{number}{lossless}"
        write_clip(folder / lq, small)
        (folder / "gt").mkdir(exist_ok=True)
        write_clip(folder / gt, coloured.get("gt", truth))
        clip = {"name": name, "frames": frames, "width": SIZE[1], "height": SIZE[0], "rate": "25", "lq": lq, "gt": gt}
        clip["results"] = {method: {} for method in METHODS}
        for method, seeds in METHODS.items():
            for seed in seeds:
                path = f"sr/{method}/{seed}/{number}"
                noisy = [np.uint8(np.clip(frame + np.float32(8 * np.sin(t)), 0, 255)) for t, frame in enumerate(truth)]
                write_clip(folder / path, coloured.get(method, noisy))
                clip["results"][method]["" if seed is None else str(seed)] = path
                rows += rows_of(method, name, seed, number)
                curves += curves_of(method, name, seed, frames, number)
        places = {"lq": lq, "gt": gt} | {
            m if s == "" else f"{m}/{s}": path for m in METHODS for s, path in clip["results"][m].items()
        }
        clip["sha256"] = {key: provenance.digest(folder / path) for key, path in places.items()}
        described.append(clip)
    text = json.dumps(describe(described, rows, curves, frames))
    (folder / "results.json").write_text(text)
    return json.loads(text)


def rows_of(method, clip, seed, number):
    own = {"method": method, "clip": clip, "seed": seed, "reason": None}
    values = {"psnr": 27 + number, "e_warp": 0.0012, "e_warp_truth": 0.0007}
    rows = [own | {"metric": metric, "value": value} for metric, value in values.items()]
    return [*rows, own | {"metric": "lpips", "value": None, "reason": "n/a: lpips is not installed"}]


def curves_of(method, clip, seed, frames, number):
    """PSNR falls by one dB a frame, and the second clip is the worse one; the warping error is greatest at frame 4."""
    own = {"method": method, "clip": clip, "seed": seed}
    falling = [30.0 - number / 2 - frame - (seed == 43) for frame in range(frames)]
    peaked = [0.002 if frame == 4 else 0.001 for frame in range(1, frames)]
    return [
        own | {"metric": "psnr", "first": 0, "values": [*falling[:-1], None]},
        own | {"metric": "e_warp", "first": 1, "values": peaked},
        own | {"metric": "e_warp_truth", "first": 1, "values": [0.0005] * (frames - 1)},
    ]


def describe(clips, rows, curves, frames):
    line = {"sd": None, "published": None, "source": None, "published_protocol": None, "difference": None,
            "tolerance": None, "within": None, "reason": None}  # fmt: skip
    figures = {
        "psnr": {"measured": 27.5, "sd": 0.02, "published": 26.53, "source": "S12", "published_protocol": "bicubic LR",
                 "difference": 0.97, "tolerance": 0.2, "within": False},
        "e_warp": {"measured": 0.0012, "published": 0.00119, "difference": 0.00001, "tolerance": 0.0001,
                   "within": True},
        "e_warp_truth": {"measured": 0.0007},
        "lpips": {"measured": None, "reason": "n/a: lpips is not installed"},
    }  # fmt: skip
    table = [
        line | {"method": method, "metric": metric["name"], "protocol": metric["protocol"]} | figures[metric["name"]]
        for metric in METRICS
        for method in METHODS
    ]
    kinds = {"ours": "upscaled", "other": "folder"}
    methods = [
        {"name": name, "kind": kinds[name], "seeds": seeds, "path": None, "settings": {"steps": 4}, "weights": None,
         "seconds_per_frame": 1.25 if name == "ours" else None, "peak_memory": None}
        for name, seeds in METHODS.items()
    ]  # fmt: skip
    dataset = {"name": "toy", "title": "Toy", "scale": 4, "layout": "folders", "root": ".", "clips": len(clips),
               "frames": frames * len(clips), "degradation": None, "config": {},
               "cut": {"max_clips": None, "max_frames": None}}  # fmt: skip
    published = [{"method": "Peer", "metric": "psnr", "value": 28.1, "source": "S1", "protocol": "Y"}]
    return {
        "format": "mgld-vsr benchmark 1", "dataset": dataset, "methods": methods, "metrics": METRICS, "clips": clips,
        "rows": rows, "curves": curves, "table": table, "published": published, "versions": {"python": "3.11"},
        "command": "python scripts/benchmark.py --dataset toy", "notes": ["A note."],
    }  # fmt: skip
