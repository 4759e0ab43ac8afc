"""The folder with the files of the product: configurations, scripts and the embedded model."""

from pathlib import Path

TOP = Path(__file__).resolve().parents[1]


def product_folder() -> Path:
    """Return the clone, or the copy of its files in an installed package (see setup.py)."""
    installed = TOP / "mgld_vsr" / "product"
    return installed if installed.is_dir() else TOP
