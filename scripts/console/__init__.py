"""The console commands of an installed package, which holds this file as `mgld_vsr`.

Each command runs the script that a clone starts by `python scripts/NAME.py`. The name of this package is its own, so
that it is found where another package named `ldm` comes first, and can say so.
"""

import importlib.util
import runpy
import sys
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSTALLED = HERE / "product"  # the files of the clone, in a wheel
PRODUCT = INSTALLED if INSTALLED.is_dir() else HERE.parents[1]
OURS = (HERE.parent if INSTALLED.is_dir() else HERE.parents[1]) / "ldm"


def foreign_package() -> str | None:
    """Where Python finds another package named `ldm`; None where it finds the one of this project."""
    found = importlib.util.find_spec("ldm")
    places = [] if found is None else list(found.submodule_search_locations or [found.origin])
    if any(Path(place).resolve() == OURS for place in places[:1]):
        return None
    return places[0] if places else "no folder"


def run(script: str) -> int:
    """Run a script of the product, which exits by itself. Returns 2 where `ldm` is not the package of this project."""
    if found := foreign_package():
        fix = "remove it from PYTHONPATH and this environment, or install mgld-vsr into an environment of its own"
        program = Path(sys.argv[0]).name
        print(f"{program}: got the package ldm of {found}, expected that of {OURS}; {fix}", file=sys.stderr)
        return 2
    runpy.run_path(str(PRODUCT / script), run_name="__main__")
    return 0


train = partial(run, "main.py")
upscale, benchmark, doctor, weights, demo = (
    partial(run, f"scripts/{name}.py") for name in ("upscale", "benchmark", "doctor", "weights", "demo")
)
