"""Interpolations `${key.sub}`: references to keys of the same configuration, measured before they are followed."""

import re
from collections.abc import Iterator
from typing import Any

from ldm.config.errors import ConfigError, brief

INNERMOST = re.compile(r"\$\{([^${}]*)\}")
KEY = re.compile(r"[\w-]+(\.[\w-]+|\[\w+\])*")
NAME = re.compile(r"\$\{\s*([\w-]+)")
MOST = 200_000  # values and characters of a configuration with its references followed


def check_references(tree: dict) -> None:
    """Raise ConfigError unless every `${...}` names a key, none leads back to itself, and all together stay small.

    Resolvers (`${oc.env:NAME}`) would read the environment or run functions: a file has only keys.
    """
    followed = _Followed(tree)
    if followed.size(tree) > MOST:
        raise ConfigError(f"the configuration has more than {MOST} values once its interpolations are followed")


def names_referenced(tree: dict) -> set[str]:
    """The top-level keys that interpolations name."""
    return {match[1] for text in _words(tree) for match in NAME.finditer(text)}


def _words(node: Any) -> Iterator[str]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from _words(child)
    if isinstance(node, str) and "${" in node:
        yield node


class _Followed:
    """How much the parts of a configuration hold once references are followed; each reference is measured once."""

    def __init__(self, tree: dict) -> None:
        self.tree = tree
        self.known: dict[str, tuple[int, Any]] = {}
        self.open: list[str] = []

    def size(self, node: Any) -> int:
        """The values and characters of a node, as a number beyond MOST where there are more."""
        if isinstance(node, dict):
            total = 1 + sum(self.size(child) + len(str(key)) for key, child in node.items())
        elif isinstance(node, list):
            total = 1 + sum(map(self.size, node))
        else:
            total = 1 + (self._followed(node)[0] if isinstance(node, str) else 0)
        return min(total, MOST + 1)

    def _followed(self, text: str) -> tuple[int, Any]:
        """The size of a word, and what it comes to: of a single reference its value, otherwise a word."""
        size = len(text)
        while match := INNERMOST.search(text):
            more, value = self._reference(match[1].strip(), text)
            size += more
            if size > MOST:
                raise ConfigError(f"{brief(text)}: interpolations make more than {MOST} values of it")
            if match.span() == (0, len(text)):
                return size, value
            text = (
                text[: match.start()] + str(value if isinstance(value, (str, int, float)) else "") + text[match.end() :]
            )
        if "${" in text:
            raise ConfigError(f"got {brief(text)}, expected interpolations such as ${{networks.unet}}")
        return size, text

    def _reference(self, name: str, text: str) -> tuple[int, Any]:
        """The size and the value of a reference; a missing key has none, and is named when it is followed."""
        if not KEY.fullmatch(name):
            kind = "a resolver" if ":" in name else "an interpolation"
            raise ConfigError(f"got {kind} in {brief(text)}, expected only keys of the configuration, as ${{seed}}")
        if name in self.open:
            raise ConfigError(f"interpolations go round in a circle: {' -> '.join([*self.open, name])[:200]}")
        if name not in self.known:
            self.open.append(name)
            node = self._selected(re.sub(r"\[(\w+)\]", r".\1", name).split("."))
            value = self._followed(node)[1] if isinstance(node, str) else node
            self.known[name] = self.size(node), value
            self.open.pop()
        return self.known[name]

    def _selected(self, keys: list[str]) -> Any:
        """The node at a path, references on the way followed; None where there is none."""
        node: Any = self.tree
        for key in keys:
            if isinstance(node, str):
                node = self._followed(node)[1]
            if isinstance(node, dict):
                node = next((child for name, child in node.items() if str(name) == key), None)
            elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            else:
                return None
        return node
