"""Damaged inputs of every kind: each ends in one line and status 2, or in a whole output; never in anything else.

MUTATIONS says how many (default 96), MUTATION_SEED which ones. All run in one process, as from one loop of a user.
"""

import os
import shutil
import signal
from pathlib import Path

import pytest

from ldm import video
from ldm.methods.geometry import FULL_SCALE
from ldm.methods.mgld.method import MGLD
from ldm.streaming.pipeline import Each, Pipeline
from scripts import upscale
from tests import corpus
from tests.scripts import toy

COUNT, SEED = int(os.environ.get("MUTATIONS", "96")), int(os.environ.get("MUTATION_SEED", "0"))
WORDS = ["--upscale", "1", "--ddpm_steps", "1", "--device", "cpu", "--max_frames", "2"]
LIMIT = 60  # seconds


def command(kind: str, path: Path, good: Path, folder: Path) -> list[str]:
    """What a person would type to use the mutated file."""
    clip, model = good / "clip.mp4", good / "model"
    if kind in ("video", "image"):
        clip = path
    elif kind == "weights":
        names = [file.name for file in model.iterdir() if file.suffix == ".safetensors"]
        name = sorted(names)[int(path.stem) % 2]
        model = corpus.model_with(model, path, name, folder / "model")
    else:
        model = corpus.model_with(model, path, "model.yaml", folder / "model")
    return ["-i", str(clip), "-o", str(folder / "out" / "frames"), "--weights", str(model), *WORDS]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return folder / "good", corpus.make_corpus(folder, COUNT, SEED)


def problem_with(status: int, said: str, folder: Path) -> str | None:
    """What is wrong with how a run ended; None for nothing."""
    left = toy.left_behind(folder / "out") if (folder / "out").exists() else []
    if status == 0:
        whole = (folder / "out" / "frames").is_dir() and next(video.read(folder / "out" / "frames")) is not None
        return None if whole and "frames.json" in left and not any(".work" in name for name in left) else f"left {left}"
    lines = [line for line in said.splitlines() if line.strip()]
    if status != 2 or not lines or not lines[-1].startswith("upscale.py: ") or len(lines[-1]) > 3000:
        return f"status {status}, said {said!r}"
    if len([line for line in lines if not line.startswith("upscale.py: ")]):
        return f"more than a line: {said!r}"
    return f"left {left}" if left else None


def passing(self, *args, **options) -> Pipeline:
    """A stream that only reads frames, for mutations of what the method does not see."""
    return Pipeline([Each(lambda frame: frame.put(sr=frame["lq"].float() / FULL_SCALE[frame["lq"].dtype]))])


@pytest.mark.slow
def test_every_mutation_ends_well(cases, tmp_path, monkeypatch, capfd):
    def too_long(*_):
        raise TimeoutError(f"more than {LIMIT} s")

    good, mutated = cases
    problems, refused, alarm = [], 0, signal.signal(signal.SIGALRM, too_long)
    try:
        for number, (kind, path, how) in enumerate(mutated):
            folder = tmp_path / str(number)
            folder.mkdir()
            words = command(kind, path, good, folder)
            capfd.readouterr()
            signal.alarm(LIMIT)
            try:
                with monkeypatch.context() as patched:
                    if kind in ("video", "image"):
                        patched.setattr(MGLD, "stream", passing)
                    status, said = upscale.main(words), capfd.readouterr().err
                problem = problem_with(status, said, folder)
                refused += status == 2
            except Exception as error:  # what a person would see as a traceback
                problem = f"{type(error).__name__}: {error}"
            finally:
                signal.alarm(0)
            if problem:
                problems.append(f"{path.parent.name}/{path.name} ({how}): {problem}"[:600])
            shutil.rmtree(folder)
    finally:
        signal.signal(signal.SIGALRM, alarm)
    print(f"{len(mutated)} mutations: {refused} refused, {len(mutated) - refused - len(problems)} restored")
    assert not problems, f"{len(problems)} of {len(mutated)}:\n" + "\n".join(problems)
    assert 0.3 * len(mutated) < refused < len(mutated)


def test_the_corpus_is_the_same_for_the_same_seed(tmp_path):
    first, second, other = (corpus.make_corpus(tmp_path / str(k), 20, seed) for k, seed in enumerate((1, 1, 2)))
    contents = [[path.read_bytes() for kind, path, _ in made if kind != "video"] for made in (first, second, other)]
    assert contents[0] == contents[1] != contents[2]
