"""Where the files of the product are: configurations, scripts and the embedded model."""

from pathlib import Path

TOP = Path(__file__).resolve().parents[1]


def product_folder() -> Path:
    """The clone, or the copy of its files in an installed package (see setup.py)."""
    installed = TOP / "mgld_vsr" / "product"
    return installed if installed.is_dir() else TOP
