"""Check interpolations `${key.sub}`, which refer to keys of the same configuration, before they are resolved.

As in OmegaConf, `\\${` is no interpolation but the two characters; backslashes before an interpolation are doubled.
"""

import re
from collections.abc import Iterator
from typing import Any

from ldm.config.errors import ConfigError, brief

INNERMOST = re.compile(r"\$\{([^${}]*)\}")
KEY = re.compile(r"[\w-]+(\.[\w-]+|\[\w+\])*")
NAME = re.compile(r"\$\{\s*([\w-]+)")
ESCAPED = re.compile(r"(?<!\\)(?:\\\\)*\\\$\{")  # an odd number of backslashes before "${"
MOST = 200_000  # values and characters of a configuration with resolved references


def escaped(text: str) -> str:
    """Return a text for a configuration in which nothing is an interpolation; resolved, it is `text` again."""
    return re.sub(r"(?<!\\)(\\*)\$\{", lambda match: rf"{match[1]}{match[1]}\${{", text)


def check_references(tree: dict) -> None:
    """Raise ConfigError for a resolver, a circular reference, or references that expand beyond MOST.

    Resolvers such as `${oc.env:NAME}` would read the environment or run functions.
    """
    followed = _Expansion(tree)
    if followed.size(tree) > MOST:
        raise ConfigError(f"the configuration has more than {MOST} values once its interpolations are followed")


def names_referenced(tree: dict) -> set[str]:
    """Return the top-level keys to which interpolations in a configuration refer."""
    return {match[1] for text in _strings(tree) for match in NAME.finditer(text)}


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, (dict, list)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _strings(child)
    elif isinstance(node, str):
        yield _without_escapes(node)


def _without_escapes(text: str) -> str:
    """Return the text with a backslash, which no key holds, for each `\\${`."""
    return ESCAPED.sub(r"\\", text)


def child_key(node: Any, key: str) -> Any:
    """Return the key or index of `key` in a mapping or list; None if there is none."""
    if isinstance(node, dict):
        return next((k for k in node if str(k) == key), None)
    if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
        return int(key)
    return None


class _Expansion:
    """Sizes of the parts of a configuration with resolved references; each reference is measured once."""

    def __init__(self, tree: dict) -> None:
        self.tree = tree
        self.known: dict[str, tuple[int, Any]] = {}
        self.open: list[str] = []

    def size(self, node: Any) -> int:
        """Return the number of values and characters of a node, at most MOST + 1."""
        if isinstance(node, dict):
            total = 1 + sum(self.size(child) + len(str(key)) for key, child in node.items())
        elif isinstance(node, list):
            total = 1 + sum(map(self.size, node))
        else:
            total = 1 + (self._resolved(node)[0] if isinstance(node, str) else 0)
        return min(total, MOST + 1)

    def _resolved(self, text: str) -> tuple[int, Any]:
        """Return the size of a string and its resolved value; of a single reference, the referenced value."""
        size, text = len(text), _without_escapes(text)
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
        """Return the size of a string and its resolved value (of a single reference, the referenced value)."""
        if not KEY.fullmatch(name):
            kind = "a resolver" if ":" in name else "an interpolation"
            raise ConfigError(f"got {kind} in {brief(text)}, expected only keys of the configuration, as ${{seed}}")
        if name in self.open:
            raise ConfigError(f"interpolations form a circle: {' -> '.join([*self.open, name])[:200]}")
        if name not in self.known:
            self.open.append(name)
            node = self._selected(re.sub(r"\[(\w+)\]", r".\1", name).split("."))
            value = self._resolved(node)[1] if isinstance(node, str) else node
            self.known[name] = self.size(node), value
            self.open.pop()
        return self.known[name]

    def _selected(self, keys: list[str]) -> Any:
        """Return the node at a path, resolving references on the way; None if there is none."""
        node: Any = self.tree
        for key in keys:
            if isinstance(node, str):
                node = self._resolved(node)[1]
            place = child_key(node, key)
            if place is None:
                return None
            node = node[place]
        return node
