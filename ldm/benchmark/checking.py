"""Validation of the YAML settings of a test set."""

import math
from collections.abc import Mapping, Sequence

KEYS = ("gt", "lq", "kind", "renamed", "list")  # of a layout
PROTOCOL = ("metrics", "lq", "published")
TABLE = ("source", "protocol", "lq", "methods")  # of a published table


def check_dataset(dataset) -> None:
    """Raise ValueError for the first invalid setting of a `Dataset`."""
    for name, layout in _mapping("layouts", dataset.layouts).items():
        _check_layout(name, layout)
    for key, required in (("lq", True), ("metrics", True), ("folders", True), ("clips", False), ("renamed", False)):
        names = getattr(dataset, key)
        if not (_is_list(names, str) or (names is None and not required)):
            raise ValueError(f"got {key}: {names}, expected a list of names, each in quotes")
    if len(dataset.renamed or ()) != len(dataset.clips if dataset.renamed and dataset.clips else ()):
        raise ValueError(f"got {len(dataset.renamed)} renamed clips, expected a name for each of `clips`")
    frames = list(dataset.frames.values()) if isinstance(dataset.frames, Mapping) else [dataset.frames or 1]
    numbers = {"scale": [dataset.scale], "count": [dataset.count or 1], "frames": frames, "size": dataset.size}
    for key, values in numbers.items():
        if values is not None and not (_is_list(values, int) and min(values, default=1) > 0):
            raise ValueError(f"got {key}: {getattr(dataset, key)}, expected whole numbers from 1")
    if dataset.size is not None and len(dataset.size) != 2:
        raise ValueError(f"got size: {list(dataset.size)}, expected width and height")
    for name, table in _mapping("published", dataset.published).items():
        _check_table(name, table)
    for name, protocol in _mapping("protocols", dataset.protocols).items():
        _check_protocol(name, protocol)


def _check_layout(name: str, layout) -> None:
    if unknown := sorted(set(_mapping(name, layout)) - set(KEYS)):
        raise ValueError(f"layout {name}: got {unknown[0]!r}, expected {', '.join(KEYS)}")
    if not all(isinstance(place, str) for key, place in layout.items() if key != "renamed"):
        raise ValueError(f"layout {name}: got {dict(layout)}, expected folders by {', '.join(KEYS)}")


def _check_protocol(name: str, protocol) -> None:
    lists = _mapping(name, protocol)
    if set(lists) != set(PROTOCOL) or not all(_is_list(value, str) for value in lists.values()):
        raise ValueError(f"protocol {name}: got {protocol}, expected lists of names by {', '.join(PROTOCOL)}")


def _check_table(name: str, table) -> None:
    """Raise ValueError for a published table with a missing entry or a value that is not a number."""
    if lacking := [key for key in TABLE if key not in _mapping(name, table)]:
        raise ValueError(f"published {name}: got no {lacking[0]}, expected it")
    if not all(isinstance(table[key], str) for key in ("source", "protocol", "lq")):
        raise ValueError(f"published {name}: got another type than text for source, protocol or lq")
    parts = {key: _mapping(key, table.get(key) or {}) for key in ("methods", "clips", "tolerance")}
    if odd := [row for key in ("methods", "clips") for row in parts[key] if not isinstance(row, str)]:
        raise ValueError(f"published {name}: got {odd[0]}, expected a name in quotes")
    figures = [_mapping(row, each) for key in ("methods", "clips") for row, each in parts[key].items()]
    for metric, value in (pair for each in (*figures, parts["tolerance"]) for pair in each.items()):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"published {name}: got {metric}: {value}, expected a number")


def _mapping(name: str, value) -> Mapping:
    if not isinstance(value, Mapping):
        raise ValueError(f"got {name}: {value}, expected keys with values")
    return value


def _is_list(values, kind: type) -> bool:
    if isinstance(values, str) or not isinstance(values, Sequence):
        return False
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
