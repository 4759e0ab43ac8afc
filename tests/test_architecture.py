"""The direction of imports between rooms, read from the source. No package is imported."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A room of ldm, one line each, and the rooms of ldm that it may import. A new room is a new line.
ROOMS = {
    "paths": "",
    "files": "",
    "printable": "",
    "memory": "",
    "config": "paths files printable memory",
    "picture": "",
    "video": "files memory printable",
    "ops": "",
    "streaming": "ops",
    "weights": "files printable",
    "metrics": "ops video",
    "diffusion": "ops",
    "nets": "ops",
    "methods": "ops diffusion nets streaming",
    "training": "files printable picture weights ops diffusion nets streaming methods",
    "engine": "paths files printable memory config weights video ops streaming methods",
    "benchmark": "paths files printable weights streaming video ops nets metrics methods engine",
    "report": "paths files video ops metrics engine picture",
}
MAY_IMPORT = {f"ldm.{name}": {f"ldm.{other}" for other in others.split()} for name, others in ROOMS.items()}
MAY_IMPORT["basicsr_deg"] = {"ldm.video"}
ENTRY_POINTS = ("scripts", "main")  # may import every room, and no room imports them
OTHERS = (*ENTRY_POINTS, "tests")
FILES = [ROOT / "main.py"] + [
    file for top in ("ldm", "basicsr_deg", "scripts", "tests") for file in sorted((ROOT / top).rglob("*.py"))
]


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
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@cache
def imports_of_all() -> dict[str, set[str]]:
    return {dotted(file): imported_modules(file.read_text(encoding="utf-8")) for file in FILES}


def stray_rooms(here: str, imports: set[str]) -> set[str]:
    """Rooms of ours that `here` imports and may not."""
    ours = ("ldm", "basicsr_deg", *ENTRY_POINTS)
    rooms = {room(name) for name in imports if name.split(".")[0] in ours}
    return rooms - {here} - MAY_IMPORT[here]


def test_imports_point_down():
    rooms = {module: names for module, names in imports_of_all().items() if module.split(".")[0] not in OTHERS}
    assert len(rooms) > 100
    assert not rooms.pop("ldm"), "ldm/__init__.py imports nothing"
    unknown = sorted({room(module) for module in rooms} - MAY_IMPORT.keys())
    assert not unknown, f"state in ROOMS what {unknown} may import"
    stray = {module: stray_rooms(room(module), names) for module, names in rooms.items()}
    assert not {module: names for module, names in stray.items() if names}


def test_no_import_is_relative():
    assert not [module for module, imports in imports_of_all().items() if any(name.startswith(".") for name in imports)]


def test_only_config_reads_omegaconf():
    readers = {
        module for module, names in imports_of_all().items() if any(name.split(".")[0] == "omegaconf" for name in names)
    }
    assert {room(module) for module in readers} == {"ldm.config"}


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
        ("basicsr_deg", "import ldm.engine", {"ldm.engine"}),
        ("ldm.methods", "import scripts.upscale, main", {"scripts", "main"}),
        ("ldm.methods", "import torch\nfrom ldm.nets.unet import UNet\nfrom ldm.methods.mgld import MGLD", set()),
    ],
)
def test_a_stray_import_is_seen(here, source, stray):
    assert stray_rooms(here, imported_modules(source)) == stray


def test_a_relative_import_is_seen():
    assert imported_modules("from . import a\nfrom ..b import c") == {"..a", "..b.c"}
