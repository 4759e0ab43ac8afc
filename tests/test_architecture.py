"""The dependency direction of the house, checked by reading imports. No package is imported."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {  # room: the rooms it may import
    "ldm.files": set(),
    "ldm.printable": set(),
    "ldm.config": {"ldm.files", "ldm.printable"},
    "ldm.weights": {"ldm.files", "ldm.printable"},
    "ldm.video": set(),
    "ldm.ops": set(),
    "ldm.streaming": set(),
    "ldm.metrics": {"ldm.ops"},
    "ldm.diffusion": {"ldm.ops"},
    "ldm.nets": {"ldm.ops"},
    "ldm.methods": {"ldm.ops", "ldm.diffusion", "ldm.nets", "ldm.streaming"},
    "ldm.training": {
        "ldm.ops",
        "ldm.diffusion",
        "ldm.nets",
        "ldm.streaming",
        "ldm.methods",
        "ldm.files",
        "ldm.picture",
    },
    "ldm.engine": {
        "ldm.files",
        "ldm.printable",
        "ldm.config",
        "ldm.weights",
        "ldm.video",
        "ldm.ops",
        "ldm.streaming",
        "ldm.methods",
    },
    "ldm.benchmark": {
        "ldm.files",
        "ldm.weights",
        "ldm.streaming",
        "ldm.video",
        "ldm.ops",
        "ldm.nets",
        "ldm.metrics",
        "ldm.methods",
        "ldm.engine",
    },
    "ldm.report": {"ldm.files", "ldm.video", "ldm.ops", "ldm.metrics", "ldm.engine"},
    "ldm.picture": set(),
    "basicsr_deg": set(),
}
ENTRY_POINTS = ("scripts", "main")  # may import every room, and no room imports them
FILES = [
    file
    for top in ("ldm", "basicsr_deg", "scripts", "main.py", "tests")
    for file in ([ROOT / top] if top.endswith(".py") else sorted((ROOT / top).rglob("*.py")))
    if file.exists()
]
ROOM_FILES = [file for file in FILES if file.relative_to(ROOT).parts[0] in ("ldm", "basicsr_deg")]


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    """`ldm.nets` of `ldm.nets.unet`; `scripts` of `scripts.upscale`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "ldm" else parts[0]


def imported_modules(source: str) -> set[str]:
    """Full dotted names of everything a module imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def stray_rooms(here: str, source: str) -> set[str]:
    """Rooms of ours that `here` imports and may not."""
    ours = ("ldm", "basicsr_deg", *ENTRY_POINTS)
    rooms = {room(name) for name in imported_modules(source) if name.split(".")[0] in ours}
    return rooms - {here} - MAY_IMPORT[here]


@pytest.mark.parametrize("file", ROOM_FILES, ids=dotted)
def test_imports_point_down(file):
    here = room(dotted(file))
    if here == "ldm":
        assert not imported_modules(file.read_text()), "ldm/__init__.py imports nothing"
        return
    assert here in MAY_IMPORT, f"{here} is a new room: state in MAY_IMPORT what it may import"
    stray = stray_rooms(here, file.read_text())
    assert not stray, f"{here} may import {sorted(MAY_IMPORT[here])}, but imports {sorted(stray)}"


@pytest.mark.parametrize("file", [file for file in FILES if file not in ROOM_FILES], ids=dotted)
def test_no_relative_imports_outside_the_rooms(file):
    imported_modules(file.read_text())


@pytest.mark.parametrize("file", [f for f in FILES if room(dotted(f)) != "ldm.config"], ids=dotted)
def test_only_config_reads_omegaconf(file):
    assert not {name for name in imported_modules(file.read_text()) if name.split(".")[0] == "omegaconf"}


def test_the_table_has_no_circle():
    reached = {room: set(rooms) for room, rooms in MAY_IMPORT.items()}
    for _ in reached:
        for rooms in reached.values():
            rooms |= set().union(*(reached[other] for other in rooms), set())
    assert not [room for room, rooms in reached.items() if room in rooms]


@pytest.mark.parametrize(
    ("here", "source", "stray"),
    [
        ("ldm.nets", "from ldm.diffusion.schedule import Schedule", {"ldm.diffusion"}),
        ("ldm.ops", "def f():\n    import ldm.nets.unet", {"ldm.nets"}),
        ("ldm.nets", "from ldm import config", {"ldm.config"}),
        ("basicsr_deg", "import ldm.video", {"ldm.video"}),
        ("ldm.methods", "import scripts.upscale, main", {"scripts", "main"}),
        ("ldm.methods", "import torch\nfrom ldm.nets.unet import UNet\nfrom ldm.methods.mgld import MGLD", set()),
    ],
)
def test_a_stray_import_is_seen(here, source, stray):
    assert stray_rooms(here, source) == stray
