"""Cards, manifests, states and checkpoints, changed at random 2,000 times: one line or a good result, nothing else."""

import contextlib
import copy
import json
import random
import resource
from pathlib import Path

import pytest
import torch
import yaml

from ldm import config
from ldm.engine.assemble import EMBEDDED
from ldm.engine.resume import WorkFolder, recorded_plan
from ldm.training.preflight import check_checkpoint
from ldm.weights import checkpoint

pytestmark = pytest.mark.slow
COUNT, GROWTH = 500, 2 << 30  # files of each kind; bytes
MANIFEST = {"plan": {"tile": 64, "norms": "auto"}, "input": {"path": "in.mp4", "names": [], "sha256": "0" * 64}}
STATE = {"parts": ["000000"], "written": 3, "pipeline": {"stages": [{"held": []}], "waiting": [[{"x": torch.ones(4)}]]}}
VALUES = [None, True, -1, 0, 3, 1 << 31, 1 << 62, 1e308, float("nan"), float("inf"), [], {}, [[]], ["x"], {"x": 1}]
VALUES += ["", "x", "../../victim", "/dev/zero", "000000", "../a", "\x1b[2J\n", "${oc.env:HOME}", "${networks}"]
VALUES += ["os.system", "ldm.nets.unet.UNet", {"target": "torch.nn.Linear"}, {"target": "ldm.ops.dis.DISFlow"}]
VALUES += [{"target": "os.system", "params": {"command": "touch victim"}}]
TENSORS = [torch.zeros(1).expand(1 << 40), torch.zeros(3, dtype=torch.int8), torch.tensor(float("nan")), torch.zeros(0)]


def places(node, path=()):
    """The paths of all values in dictionaries and lists."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in pairs:
        yield (*path, key)
        yield from places(child, (*path, key))


def changed(content, draw: random.Random, values: list):
    """A copy with up to three values replaced, removed, renamed or moved."""
    content = copy.deepcopy(content)
    for _ in range(draw.randint(0, 3)):
        found = list(places(content))
        if not found:
            break
        *above, key = draw.choice(found)
        node = content
        for step in above:
            node = node[step]
        way = draw.random()
        if way < 0.6:
            node[key] = copy.deepcopy(draw.choice(values))
        elif way < 0.8:
            del node[key]
        elif isinstance(node, dict):
            node[draw.choice(["x", "target", "params", "include", 3])] = node.pop(key)
    return content


def bitten(data: bytes, draw: random.Random) -> bytes:
    """Bytes of which some are changed, or the end is missing."""
    data = bytearray(data)
    for _ in range(draw.randint(0, 8)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data[: draw.randrange(len(data))] if draw.random() < 0.2 else data)


def spoiled(content, draw: random.Random, path: Path, write) -> None:
    """A changed content in a file, in one case of three with changed bytes as well."""
    write(content, path)
    if draw.random() < 0.33 and path.stat().st_size:
        path.write_bytes(bitten(path.read_bytes(), draw))


def write_yaml(content, path: Path) -> None:
    path.write_text(yaml.dump(content), encoding="utf-8")


def write_json(content, path: Path) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def use_card(path: Path) -> None:
    settings = config.load(path)
    with torch.device("meta"):
        networks = config.instantiate(settings.get("networks"))
    config.instantiate(settings.get("method"), **({"networks": networks} if settings.get("method") else {}))


def use_work(path: Path) -> None:
    output = path.parent.with_name(path.parent.name.removesuffix(".work"))
    recorded_plan(output)
    with WorkFolder(output, MANIFEST) as work:
        work.part(0).write_text("x")
        work.load()


def use_checkpoint(path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    with contextlib.suppress(ValueError):
        check_checkpoint(path, net, steps=9, ema=None, scheduled=False)
    checkpoint.load(net, checkpoint.read(path))


def tree(path: Path) -> tuple:
    """What tells whether a file was touched."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_mode


def card() -> dict:
    return config.plain(config.load(EMBEDDED / "model.yaml"))


def trained() -> dict:
    state = torch.nn.Linear(2, 2).state_dict()
    return {"state_dict": dict(state), "global_step": 3, "lr_schedulers": [], "callbacks": {"x": {"best": "a.ckpt"}}}


KINDS = {  # name: content, values, how it is written, where, how it is used
    "card": (card, VALUES, write_yaml, "model.yaml", use_card),
    "manifest": (lambda: MANIFEST, VALUES, write_json, "out.mp4.work/manifest.json", use_work),
    "state": (lambda: STATE, VALUES + TENSORS, torch.save, "out.mp4.work/state.pt", use_work),
    "checkpoint": (trained, VALUES + TENSORS, torch.save, "last.ckpt", use_checkpoint),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_file_holds(kind, tmp_path, monkeypatch):
    content, values, write, name, use = KINDS[kind]
    content, draw, outcomes = content(), random.Random(kind), {"good": 0, "refused": 0}
    outside, inside = tmp_path / "victim", tmp_path / "a" / "b"
    outside.write_text("kept")
    monkeypatch.chdir(tmp_path)
    before, most = tree(outside), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for number in range(COUNT):
        path = inside / str(number) / name
        path.parent.mkdir(parents=True)
        spoiled(changed(content, draw, values), draw, path, write)
        try:
            use(path)
            outcomes["good"] += 1
        except (ValueError, FileNotFoundError) as error:
            line = str(error)
            assert "\n" not in line and "\x1b" not in line and len(line) < 2000, line
            outcomes["refused"] += 1
        found = sorted(child.name for child in tmp_path.iterdir())
        assert found == ["a", "victim"] and tree(outside) == before and outside.read_text() == "kept"
    assert min(outcomes.values()) > COUNT // 50, outcomes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - most < GROWTH
