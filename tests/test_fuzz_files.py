"""Cards, manifests, states, weights and overrides, changed at random: one line or a good result, nothing else.

Every kind of file is used in a process of its own, which is watched: what it opens, changes and runs outside the folder
of the file, what its surroundings hold afterwards, and how much memory it takes.
"""

import contextlib
import copy
import functools
import json
import os
import random
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from ldm import config
from ldm.engine.assemble import CONFIGS, EMBEDDED
from ldm.engine.resume import WorkFolder, recorded_plan
from ldm.training.preflight import check_checkpoint
from ldm.weights import checkpoint
from tests.corpus import MUTATIONS
from tests.watched import Watch, listing

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
GROWTH = 2 << 30  # bytes
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
    """A copy with up to three values replaced, removed, renamed or moved; without `values`, a plain copy."""
    content = copy.deepcopy(content)
    for _ in range(draw.randint(0, 3) if values else 0):
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


def use_text(path: Path) -> None:
    """A card whose text was changed."""
    draw = random.Random(path.parent.name)
    path.write_bytes(draw.choice(MUTATIONS["yaml"])(bytearray(path.read_bytes()), draw))
    use_card(path)


@functools.cache
def good_card():
    return config.load(EMBEDDED / "model.yaml")


def use_words(path: Path) -> None:
    """A good card, changed by words of a command line."""
    settings = good_card()
    changed = config.override(settings, json.loads(path.read_text(encoding="utf-8")))
    with torch.device("meta"):
        config.instantiate(changed.get("networks"))


def use_weights(path: Path) -> None:
    state, net = checkpoint.read(path), torch.nn.Linear(2, 2)
    total = sum(value.double().sum().item() for value in state.values() if value.is_floating_point())  # every value
    assert total is not None
    checkpoint.load(net, state)


@functools.cache
def card() -> dict:
    return config.plain(config.load(EMBEDDED / "model.yaml"))


@functools.cache
def card_text() -> dict:
    """The card as people write it, with its comments; its includes are found from anywhere."""
    text = (CONFIGS / "tiny" / "model.yaml").read_text(encoding="utf-8")
    return {"text": text.replace("../flows.yaml", "flows.yaml")}


def trained() -> dict:
    state = torch.nn.Linear(2, 2).state_dict()
    return {"state_dict": dict(state), "global_step": 3, "lr_schedulers": [], "callbacks": {"x": {"best": "a.ckpt"}}}


def header() -> dict:
    """The header of a safetensors file of a small network."""
    weight = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    bias = {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]}
    return {"__metadata__": {"format": "pt"}, "weight": weight, "bias": bias}


def write_text(content: dict, path: Path) -> None:
    path.write_text(content["text"], encoding="utf-8")


def write_safetensors(content: dict, path: Path) -> None:
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<6f", *range(6)))


def words(draw: random.Random) -> list[str]:
    """Words for a command line: a setting of the card, or what looks like one, and a value in many writings."""
    known = [".".join(map(str, place)) for place in places(card())]
    typed = [json.dumps(value) for value in VALUES] + [str(value) for value in VALUES]
    typed += ["[", "{a: ", "'", "!!python/name:os.system", "&a [*a]", "0x" + "f" * 400, "9" * 5000, "[" * 5000, "a #"]
    pairs = ((draw.choice(["", "+", "++"]), draw.choice(known), draw.choice(typed)) for _ in range(draw.randint(1, 4)))
    return [f"{sign}{key}={value}" for sign, key, value in pairs]


OFFSETS = [[0, 1 << 62], [16, 0], [8, 24], [-1, 3], [0, 24], ["x", 1], [0]]
SHAPES = [[1 << 40, 1 << 40], [0], [-1], [2] * 99, "x", "I8", "F8_E4M3", "BOOL", "F64", "U16", "\x1b[2J"]
KINDS = {  # name: number of files, content, values, how it is written, where, how it is used
    "card": (75, card, VALUES, write_yaml, "model.yaml", use_card),
    "text": (50, card_text, [], write_text, "model.yaml", use_text),
    "words": (60, words, [], write_json, "words.json", use_words),
    "manifest": (500, lambda: MANIFEST, VALUES, write_json, "out.mp4.work/manifest.json", use_work),
    "state": (500, lambda: STATE, VALUES + TENSORS, torch.save, "out.mp4.work/state.pt", use_work),
    "checkpoint": (500, trained, VALUES + TENSORS, torch.save, "last.ckpt", use_checkpoint),
    "safetensors": (500, header, VALUES + OFFSETS + SHAPES, write_safetensors, "a.safetensors", use_weights),
}


def trials(kind: str, folder: Path) -> dict:
    """Use all files of one kind in `folder`; what came of it. Run in a process of its own."""
    count, content, values, write, name, use = KINDS[kind]
    draw, outcomes, strange = random.Random(kind), {"good": 0, "refused": 0}, []
    with contextlib.suppress(ValueError, FileNotFoundError):  # what is imported at first use is imported now
        use(folder / "none" / name)
    before = listing(folder)
    watch, most = Watch(folder), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for number in range(count):
        path = folder / "cases" / str(number) / name
        watch.enter(path.parents[len(Path(name).parts) - 1])
        path.parent.mkdir(parents=True)
        made = content(draw) if content is words else changed(content(), draw, values)
        spoiled(made, draw, path, write)
        try:
            use(path)
            outcomes["good"] += 1
        except (ValueError, FileNotFoundError) as error:
            outcomes["refused"] += 1
            line = str(error)
            if "\n" in line or "\x1b" in line or len(line) > 2000:
                strange.append(line[:2000])
        except Exception as error:
            strange.append(f"{number}: {error!r}"[:500])
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - most
    touched, after = list(watch.seen), listing(folder)  # the listing itself reads everything
    names = {name for name in {*before, *after} if not own(name) and before.get(name) != after.get(name)}
    strange += [f"{name} is another file" for name in sorted(names)]
    return outcomes | {"strange": strange, "touched": touched, "growth": growth}


def own(name: str) -> bool:
    """Whether this lies in the folder of a file that was used."""
    return name == "cases" or (name.startswith("cases/") and name.split("/")[1].isdecimal())


CHILD = """
import json, sys
from pathlib import Path
from tests.test_fuzz_files import trials
folder, kind = Path(sys.argv[1]), sys.argv[2]
Path(folder / "result.json").write_text(json.dumps(trials(kind, folder)))
"""


def surroundings(folder: Path) -> None:
    """Files that a card, manifest or state might name."""
    for name in ("victim", "a", "a.ckpt", "x", "000000", "home/.bashrc", "cases/victim", "cases/a"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("kept")
    (folder / "temp").mkdir()


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_file_holds(kind, tmp_path):
    surroundings(tmp_path)
    product = [listing(ROOT / name) for name in ("configs", "assets/tiny")]
    places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temp"), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-W", "ignore", "-B", "-c", CHILD, str(tmp_path), kind]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | places, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert not result["strange"] and not result["touched"], result
    assert min(result["good"], result["refused"]) > KINDS[kind][0] // 50 and result["growth"] < GROWTH, result
    assert [listing(ROOT / name) for name in ("configs", "assets/tiny")] == product


def test_the_watch_sees_what_is_touched(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "victim").write_text("x")
    script = """
import os, subprocess, sys
from pathlib import Path
from tests.watched import Watch
here = Path(sys.argv[1])
watch = Watch(here)
watch.enter(here / "in")
(here / "in" / "a").write_text("x")
(here / "in" / "a").rename(here / "in" / "b")
assert not watch.seen, watch.seen
(here / "victim").read_text()
(here / "in" / "link").symlink_to(here / "victim")
os.open(here / "in" / "link", os.O_RDWR)
(here / "victim").unlink()
(here / "new").mkdir()
subprocess.run(["true"])
print(*watch.seen, sep="\\n")
"""
    words = [sys.executable, "-B", "-c", script, str(tmp_path)]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    events = [line.split(" ")[0] for line in done.stdout.splitlines()]
    assert events[:5] == ["open", "os.symlink", "open", "os.remove", "os.mkdir"], done.stdout + done.stderr
    assert "subprocess.Popen" in events
