"""What a person may have got wrong in the YAML of a test set."""

import math
from collections.abc import Mapping, Sequence

KEYS = {"gt", "lq", "kind", "renamed"}  # of a layout
TABLE = ("source", "protocol", "lq", "methods")  # of a published table


def check_dataset(dataset) -> None:
    """Raise ValueError, naming the first setting of a `Dataset` that cannot be."""
    _check_layouts(dataset.layouts)
    for key in ("lq", "metrics", "folders", "clips", "renamed"):
        given = getattr(dataset, key)
        if not _are(given, str) or None in (given or ()) or (given is None and key in ("lq", "metrics", "folders")):
            raise ValueError(f"got {key}: {given}, expected a list of names, each in quotes")
    if len(dataset.renamed or ()) != len(dataset.clips if dataset.renamed and dataset.clips else ()):
        raise ValueError(f"got {len(dataset.renamed)} renamed clips, expected a name for each of `clips`")
    lengths = [*dataset.frames.values()] if isinstance(dataset.frames, Mapping) else [dataset.frames]
    for key, numbers in (
        ("scale", [dataset.scale]),
        ("count", [dataset.count]),
        ("frames", lengths),
        ("size", dataset.size),
    ):
        if not _are(numbers, int) or any(
            number < 1 if number is not None else key == "scale" for number in numbers or ()
        ):
            raise ValueError(f"got {key}: {getattr(dataset, key)}, expected whole numbers from 1")
    if dataset.size is not None and len(dataset.size) != 2:
        raise ValueError(f"got size: {list(dataset.size)}, expected width and height")
    for name, table in _mapping("published", dataset.published).items():
        _check_table(name, table)


def _check_layouts(layouts) -> None:
    for name, layout in _mapping("layouts", layouts).items():
        if not all(isinstance(place, str) for key, place in _mapping(name, layout).items() if key != "renamed"):
            raise ValueError(f"layout {name}: got {dict(layout)}, expected folders by {', '.join(sorted(KEYS))}")
        if unknown := set(layout) - KEYS:
            raise ValueError(f"layout {name}: got {sorted(unknown)[0]!r}, expected {', '.join(sorted(KEYS))}")


def _mapping(name: str, value) -> Mapping:
    """A value that must have keys. Raises ValueError."""
    if not isinstance(value, Mapping):
        raise ValueError(f"got {name}: {value}, expected keys with values")
    return value


def _check_table(name: str, table) -> None:
    """Raises ValueError for a published table that lacks something, or has words for figures."""
    if lacking := [key for key in TABLE if key not in _mapping(name, table)]:
        raise ValueError(f"published {name}: got no {lacking[0]}, expected it")
    if not all(isinstance(table[key], str) for key in ("source", "protocol", "lq")):
        raise ValueError(f"published {name}: got something else than words for source, protocol or lq")
    parts = {key: _mapping(key, table.get(key) or {}) for key in ("methods", "clips", "tolerance")}
    figures = [_mapping(row, each) for key in ("methods", "clips") for row, each in parts[key].items()]
    for metric, value in (pair for each in (*figures, parts["tolerance"]) for pair in each.items()):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"published {name}: got {metric}: {value}, expected a number")
    if odd := [row for key in ("methods", "clips") for row in parts[key] if not isinstance(row, str)]:
        raise ValueError(f"published {name}: got {odd[0]}, expected a name in quotes")


def _are(values, kind: type) -> bool:
    """Whether a value is a list of things of a kind, or None among them; or no list at all."""
    if values is None:
        return True
    if isinstance(values, str) or not isinstance(values, Sequence):
        return False
    return all(value is None or (isinstance(value, kind) and not isinstance(value, bool)) for value in values)
