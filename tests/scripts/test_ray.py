"""--engine ray: the clips of a folder on a real cluster of two nodes, one of which is killed."""

import contextlib
import importlib.util
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from ldm import config, video
from ldm.weights import checkpoint
from scripts import upscale
from tests import scenic
from tests.scripts import toy

INSTALLED = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not INSTALLED, reason="Ray is not installed: pip install -c constraints.txt '.[ray]'")
STORE = 80 * 10**6  # bytes of the object store of a node
CLIPS, FRAMES, SCENE = 4, 40, 10


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A command without its output: clips and a model that takes little time."""
    folder = tmp_path_factory.mktemp("clips")
    checkpoint.save(folder / "soft.safetensors", {"weight": torch.eye(3)[..., None, None], "bias": torch.zeros(3)})
    config.save(scenic.card(), folder / "model.yaml")
    for number in range(CLIPS):
        with video.open_writer(folder / "in" / f"{number}.mp4", size=(24, 32), rate=25) as writer:
            for k, frame in enumerate(toy.make_frames(FRAMES)):
                writer.write(frame // 3 + 160 * (k // SCENE % 2))
    trust = ["--trust", "tests.scenic", "--trust", "tests.foreign"]
    return ["-i", str(folder / "in"), "--weights", str(folder), *trust, "--upscale", "2", "--save_every", "2"]


@pytest.fixture
def cluster():
    """A cluster of two nodes of this machine, each with one core, which ends with the test; and its second node."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE})
        try:
            yield made, made.add_node(num_cpus=1, object_store_memory=STORE)
        finally:
            made.shutdown()


@needs_ray
@pytest.mark.slow  # a cluster starts a dozen processes, two of which load torch
@pytest.mark.parametrize("split", [False, True])
def test_a_cluster_that_loses_a_node_makes_the_same_bytes(words, cluster, tmp_path, split):
    nodes, second = cluster
    folder = Path(words[1])
    out, alone = (tmp_path / name / ("0.mp4" if split else "") for name in ("out", "alone"))
    words = ["-i", str(folder / "0.mp4" if split else folder), *words[2:]]
    more = ["--split", "scenes"] if split else []
    command = [sys.executable, str(Path(upscale.__file__).resolve()), *words, "-o", str(out), "--engine", "ray", *more]
    environment = {**os.environ, "RAY_ADDRESS": nodes.address, "PYTHONPATH": ""}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, **streams) as driver:
        while busy(tmp_path / "out") < (1 if split else 2):
            assert driver.poll() is None, driver.communicate()[0]
            time.sleep(0.01)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes.remove_node(second, allow_graceful=False)
        said = driver.communicate(timeout=300)[0]
    assert driver.returncode == 0, said
    assert "Ray: 2 workers" in said and ("scenes: 4, parts: 4" in said) == split
    assert "its worker died; another one resumes it" in said
    assert upscale.main([*words, "-o", str(alone), "--device", "cpu"]) == 0
    names = ["0.mp4"] if split else [f"{number}.mp4" for number in range(CLIPS)]
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    left = [name for name in toy.left_behind(tmp_path / "out") if "partial" not in name]
    assert left == sorted(f"{name}{suffix}" for name in names for suffix in ("", ".json"))


def busy(out: Path) -> int:
    """Return the number of clips of which something is saved."""
    with contextlib.suppress(FileNotFoundError):
        return len(list(out.rglob("*.work/state.pt")))
    return 0


@pytest.mark.skipif(INSTALLED, reason="Ray is installed")
def test_without_ray_the_command_says_what_to_install(words, tmp_path, capfd):
    assert upscale.main([*words, "-o", str(tmp_path / "out"), "--engine", "ray"]) == 2
    error = capfd.readouterr().err
    assert "got --engine ray without Ray" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [(["--overwrite"], "got --overwrite with --engine ray"), (["--split", "scenes", "--keep-work"], "--keep-work")],
)
def test_what_a_cluster_cannot_do_is_one_line(words, tmp_path, change, says, capfd):
    assert upscale.main([*words, "-o", str(tmp_path / "out"), "--engine", "ray", *change]) == 2
    error = capfd.readouterr().err
    assert says in error and error.count("\n") == 1
