"""Measure the time to degrade a clip on one core: python scripts/profile_degradation.py [--frames 5 --size 512]"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

import cv2
import numpy as np

from basicsr_deg.clips import RenderedScenes
from ldm import config
from scripts.command import Parser, exit_status, positive_int, tell

PROGRAM = "profile_degradation.py"
PROTOCOLS = Path(__file__).resolve().parents[1] / "configs" / "degradations"


def seconds_of(degradation, clip: np.ndarray, seeds: range) -> tuple[list[float], dict[str, float]]:
    """Return CPU seconds of each degraded clip, and the total of each stage."""
    whole, stages = [], {}
    for seed in seeds:
        begun = last = time.process_time()

        def count(name: str, _notes: dict, _frame: np.ndarray) -> None:
            nonlocal last
            now = time.process_time()
            stages[name] = stages.get(name, 0.0) + now - last  # frames are streamed: time since the previous stage
            last = now

        degradation(clip, np.random.default_rng(seed), trace=count)
        whole.append(time.process_time() - begun)
    return whole, stages


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(PROGRAM, __doc__)
    known = ["realbasicvsr", "realbasicvsr_released", "realbasicvsr_mild"]
    parser.add_argument("--protocols", nargs="+", default=known, help=f"of configs/degradations (default: {known})")
    parser.add_argument("--frames", type=positive_int, default=5, help="of the clip (default: 5)")
    parser.add_argument("--size", type=positive_int, default=512, help="sides of its frames (default: 512)")
    parser.add_argument("--clips", type=positive_int, default=20, help="seeds (default: 20)")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> None:
    cv2.setNumThreads(1)
    scene = RenderedScenes(length=1, size=args.size)
    clip = scene.clip(0, np.random.default_rng(0), args.frames)
    for protocol in args.protocols:
        degradation = config.instantiate(config.load(PROTOCOLS / f"{protocol}.yaml").degradation)
        whole, stages = seconds_of(degradation, clip, range(args.clips))
        tell(f"{protocol}: {np.mean(whole):.2f} s a clip, {max(whole):.2f} s at most")
        shares = sorted(stages.items(), key=lambda item: -item[1])
        tell("  " + ", ".join(f"{name} {spent / sum(whole):.0%}" for name, spent in shares))


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)))


if __name__ == "__main__":
    sys.exit(main())
