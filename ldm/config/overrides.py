"""Apply overrides such as `key.sub=value`, with values of the type that the setting has.

For a setting that is a string, the value is the text itself (`011`, `no`, `12:30`, `a #1`); `null` means None, and
quotes are optional. For other settings, values are read as YAML, except that numbers with leading zeros are strings and
that there are no comments. A `Text` gives a value that is not read at all.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin

import yaml

from ldm.config.annotations import LISTS, signature_of, union_members
from ldm.config.errors import ConfigError, brief, nearest
from ldm.config.references import child_key, escaped
from ldm.config.targets import find_target

BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NULLS = ("", "null", "~")
ITEM = re.compile(r"""\s*("[^"]*"|'[^']*'|[^,]*)\s*(?:,|$)""")
HASH = "\ue000"  # replaces a "#" that would begin a comment


class Text(NamedTuple):
    """An override whose value is a text letter by letter, such as a prompt: no quotes, references or `null`.

    A dotted key that does not exist is added.
    """

    key: str
    text: str


class _Loader(yaml.SafeLoader):
    """YAML without octal numbers (011), numbers to the base 60 (12:30), and booleans called yes and no."""

    yaml_implicit_resolvers: dict = {}


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(?i:true|false)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("(~|(?i:null)|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile("[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?((0|[1-9][0-9]*)?\.[0-9]+|(0|[1-9][0-9]*)\.)([eE][-+]?[0-9]+)?$|[-+]?[1-9][0-9]*[eE][-+]?[0-9]+$"
               r"|[-+]?\.(inf|nan)$"),
    list("-+.0123456789"),
)  # fmt: skip


def apply_overrides(tree: dict, words: Iterable[str | Text], trust: Sequence[str] = ()) -> None:
    """Apply overrides to a configuration in place. Raises ConfigError."""
    for word in words:
        if isinstance(word, Text):
            _set(tree, word.key.split("."), escaped(word.text), add=True)
            continue
        key, equals, text = word.partition("=")
        if not equals or not key.lstrip("+"):
            raise ConfigError(f"got override {brief(word)}, expected key=value")
        keys = key.removeprefix("+").split(".")
        value = _value(text, _annotation_of(tree, keys, trust), word)
        _set(tree, keys, value, add=key.startswith("+"))


def _annotation_of(tree: dict, keys: list[str], trust: Sequence[str]) -> Any:
    """Return the annotation of a setting's argument, or else the type of its value; None if unknown."""
    node: Any = tree
    annotation, arguments = None, None
    for key in keys:
        annotation, arguments = _item_annotation(annotation, key) if arguments is None else arguments.get(key), None
        if key == "params" and isinstance(node, dict) and "target" in node:
            arguments = _parameter_annotations(node["target"], trust)
        index = child_key(node, key)
        node = None if index is None else node[index]
    return _type_of(node) if annotation is None else annotation


def _parameter_annotations(target: Any, trust: Sequence[str]) -> dict[str, Any]:
    """Return the annotations of a target's parameters."""
    try:
        parameters = signature_of(find_target(target, "", trust))
    except ConfigError:  # reported when it is built
        return {}
    return {p.name: p.annotation for p in parameters if p.annotation is not p.empty}


def _item_annotation(annotation: Any, key: str) -> Any:
    """Return the annotation of an entry of a list or mapping; None if unknown."""
    for choice in union_members(annotation):
        origin, inner = get_origin(choice), get_args(choice)
        if isinstance(origin, type) and issubclass(origin, Mapping) and len(inner) == 2:
            return inner[1]
        if origin in LISTS and inner and key.isdecimal():
            return inner[0]
    return None


def _type_of(value: Any) -> Any:
    """Return the annotation that fits a value; None if its type is open."""
    if isinstance(value, str):
        return None if value.startswith("${") else str
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return list[str]
    return type(value) if isinstance(value, (bool, int, float)) else None


def _value(text: str, expected: Any, word: str) -> Any:
    """Convert the text of an override to a value of the type `expected`."""
    types = [type_ for type_ in union_members(expected) if type_ is not NoneType]
    if text.strip() in NULLS:
        return None
    if text.startswith("${"):
        return text
    if types and all(type_ in (str, Path) for type_ in types):
        return _unquoted(text)
    is_list = text.startswith("[") and text.endswith("]")
    if is_list and types and all(type_ is str or _is_list_of_strings(type_) for type_ in types):
        return [_unquoted(item) for item in _items(text[1:-1], word)]
    if bool in types and text.strip().lower() in BOOLEANS:
        return BOOLEANS[text.strip().lower()]
    if int in types and str not in types and text.strip().isdecimal():
        return int(text)
    return _parsed_yaml(text, word)


def _is_list_of_strings(type_: Any) -> bool:
    return get_origin(type_) in LISTS and get_args(type_) in ((str,), (str, ...))


def _items(text: str, word: str) -> Iterator[str]:
    place = 0
    while text[place:].strip():
        match = ITEM.match(text, place)
        if match is None:
            raise ConfigError(f"override {brief(word)}: {brief(text)} is not a list of words")
        yield match[1].strip()
        place = match.end()


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def _parsed_yaml(text: str, word: str) -> Any:
    """Read a value as YAML without comments; invalid YAML is a string, unless it begins as a list or mapping."""
    try:
        value = yaml.load(re.sub(r"(?<=\s)#", HASH, text), Loader=_Loader)  # noqa: S506 (a SafeLoader)
        restored = _with_hashes(value)  # RecursionError: a list in itself
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        if text[0] in "[{\"'&*!":
            raise ConfigError(f"override {brief(word)}: {brief(text)} is not a YAML value") from error
        return text
    return text if isinstance(value, dict) and text[0] != "{" else restored


def _with_hashes(value: Any) -> Any:
    if isinstance(value, dict):
        return {_with_hashes(key): _with_hashes(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_with_hashes(child) for child in value]
    return value.replace(HASH, "#") if isinstance(value, str) else value


def _set(tree: dict, keys: list[str], value: Any, *, add: bool) -> None:
    """Set one value. A mapping in place of a mapping changes only its own keys, which must exist unless `add`."""
    node: Any = tree
    for depth, key in enumerate(keys):
        index = child_key(node, key)
        if index is None:
            if isinstance(node, str) and node.startswith("${"):
                here = ".".join(keys[:depth])
                raise ConfigError(f"override {'.'.join(keys)}: {here} is {node}; override {node[2:-1]} instead")
            if not add or not isinstance(node, dict):
                raise ConfigError(f"override {'.'.join(keys)}: no such key{_nearest_path('.'.join(keys), tree)}")
            index, node[key] = key, {}
        parent, node = node, node[index]
    if isinstance(value, dict) and value and isinstance(node, dict) and node:
        for key, child in value.items():
            _set(tree, [*keys, str(key)], child, add=add)
    else:
        parent[index] = value


def _paths(node: dict | list, prefix: str = "") -> Iterator[str]:
    pairs = enumerate(node) if isinstance(node, list) else node.items()
    for key, child in pairs:
        yield f"{prefix}{key}"
        if isinstance(child, (dict, list)):
            yield from _paths(child, f"{prefix}{key}.")


def _nearest_path(key: str, tree: dict) -> str:
    """Return the end of a message that suggests an existing key, preferably one with the same last part."""
    known, leaf = list(_paths(tree)), key.rsplit(".", 1)[-1]
    same_leaf = [p for p in known if p.rsplit(".", 1)[-1] == leaf]
    return nearest(key, same_leaf or known) + " (a leading + adds a key)"
