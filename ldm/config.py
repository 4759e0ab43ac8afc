"""YAML -> objects. The only file that reads YAML and knows what `target:` and `include:` mean."""

import difflib
import importlib
import inspect
import io
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.files import partial


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line that names the place."""


KINDS = {  # of annotations: the types of values that fit, and what to call them
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a word"),
    bool: ((bool,), "true or false"),
}


def load(*paths: str | Path, overrides: Iterable[str] = ()) -> DictConfig:
    """Merge YAML files left to right, then `key.sub=value` words.

    A file's top-level `include: [other.yaml, ...]` (relative to that file) is merged before it. An override must name a
    key that exists; `+key=value` adds one. Interpolations `${networks.unet}` are kept and resolved by `instantiate`,
    so every place that names one builds its own object.

    Raises FileNotFoundError for a missing file, ConfigError for anything else that is wrong in files or overrides.
    """
    try:
        merged = OmegaConf.merge(*[_read(Path(path), ()) for path in paths])
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a list over a mapping
        raise ConfigError(f"{', '.join(map(str, paths))} do not merge: {_first_line(error)}") from error
    return override(merged, overrides)


def merge(config: DictConfig, path: str | Path) -> DictConfig:
    """`config` with the YAML file `path` merged over it. Raises as `load`."""
    try:
        return OmegaConf.merge(config, _read(Path(path), ()))
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a list over a mapping
        raise ConfigError(f"{path} does not merge with the configuration: {_first_line(error)}") from error


def override(config: DictConfig, words: Iterable[str]) -> DictConfig:
    """A copy of `config` changed by `key.sub=value` words, as `load` takes them. Raises ConfigError."""
    plain = OmegaConf.to_container(config)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.lstrip("+"):
            raise ConfigError(f"got override {word!r}, expected key=value")
        _override(plain, key.removeprefix("+").split("."), _parse(text, word), add=key.startswith("+"))
    return OmegaConf.create(plain)


def plain(config: Any) -> dict:
    """A configuration as dictionaries, lists, numbers and words, references resolved."""
    return OmegaConf.to_container(config, resolve=True)


def select(config: DictConfig, key: str) -> Any:
    """The value at a dotted key, None where there is none."""
    return OmegaConf.select(config, key)


def check_target(config: DictConfig, key: str) -> None:
    """Raise ConfigError unless a mapping with a `target` stands at a dotted key."""
    try:
        found = OmegaConf.select(config, key)
    except OmegaConfBaseException as error:
        raise ConfigError(f"config.{key}: {_first_line(error)}") from error
    if not OmegaConf.is_dict(found) or "target" not in found:
        got = "nothing" if found is None else type(found).__name__.removesuffix("Config")
        raise ConfigError(f"config.{key}: got {got}, expected a mapping with a target")


def save(config: Any, path: str | Path) -> None:
    """Write a configuration as YAML, interpolations kept, so that `load(path)` gives it back; never half a file."""
    path = Path(path)
    with partial(path) as temporary:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(config)), encoding="utf-8")


def instantiate(node: Any, place: str | None = None, **built: Any) -> Any:
    """Build every `target:` in `node` with its `params:`, children first, so constructors receive objects, not configs.

    `node` is what `load` returned or a part of it; mappings and lists without `target` keep their form. `place` starts
    the names of places in messages (default `config` and the node's own path). `built` are arguments of the outermost
    target that exist already.

    Raises ConfigError for an unknown target, an unknown or missing argument, a key beside `target` and `params`, an
    interpolation that leads nowhere, and for what a constructor raises where its arguments make no sense.
    """
    if OmegaConf.is_config(node):
        own = node._get_full_key(None)
        place = place or (f"config.{own}" if own else "config")
        try:
            node = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            at = f"config.{error.full_key}" if error.full_key else place
            raise ConfigError(f"{at}: {_first_line(error)}") from error
    return _build(node, place or "config", built)


def _build(node: Any, place: str, built: dict | None = None) -> Any:
    if isinstance(node, list):
        return [_build(child, f"{place}[{i}]") for i, child in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "target" not in node:
        return {key: _build(child, f"{place}.{key}") for key, child in node.items()}
    if extra := [key for key in node if key not in ("target", "params")]:
        raise ConfigError(f"{place}: unknown key {extra[0]!r} beside target and params{_nearest(extra[0], ['params'])}")
    params = node.get("params") or {}
    if not isinstance(params, dict):
        raise ConfigError(f"{place}.params: got {type(params).__name__}, expected a mapping of argument names")
    make = _find_target(node["target"], place)
    _check_arguments(make, params | (built or {}), place)
    params = {key: _build(child, f"{place}.params.{key}") for key, child in params.items()} | (built or {})
    try:
        return make(**params)
    except ConfigError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        kind = "" if isinstance(error, (TypeError, ValueError)) else f"{type(error).__name__}: "
        raise ConfigError(f"{place} -> {node['target']}: {kind}{_first_line(error)}") from error


def _find_target(target: Any, place: str) -> Callable:
    """The class or function a dotted name leads to; also `module.Class.classmethod`."""
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"{place}.target: got {target!r}, expected a dotted name such as torch.nn.Linear")
    parts = target.split(".")
    module, rest = _import_longest(parts, place, target)
    found: Any = module
    for i, name in enumerate(rest):
        if not hasattr(found, name):
            known = [n for n in vars(found) if not n.startswith("_")]
            if inspect.ismodule(found) and hasattr(found, "__path__"):
                known += [m.name for m in pkgutil.iter_modules(found.__path__)]
            where = ".".join(parts[: len(parts) - len(rest) + i])
            raise ConfigError(f"{place}.target: {where} has no {name!r}{_nearest(name, known, prefix=where + '.')}")
        found = getattr(found, name)
    if not callable(found):
        raise ConfigError(f"{place}.target: {target} is a {type(found).__name__}, expected a class or a function")
    return found


def _import_longest(parts: list[str], place: str, target: str) -> tuple[Any, list[str]]:
    """The deepest module along a dotted name, and the names that are left."""
    module = None
    for i in range(1, len(parts)):
        name = ".".join(parts[:i])
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            if getattr(error, "name", None) != name:  # the module is there, what it imports is not: no typo
                raise ConfigError(f"{place}.target: {name} cannot be imported: {_first_line(error)}") from error
            if module is None:
                raise ConfigError(f"{place}.target: there is no module {name!r} (in {target})") from error
            return module, parts[i - 1 :]
    return module, parts[-1:]


def _check_arguments(make: Callable, params: dict, place: str) -> None:
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # some built-in types state no signature: their own error has to do
        return
    accepted = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in accepted]
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        for key in params:
            if key not in names:
                who = f"{place}.params.{key}: {make.__qualname__}"
                raise ConfigError(f"{who} has no argument {key!r}{_nearest(key, names)}")
    missing = [p.name for p in accepted if p.default is p.empty and p.name not in params]
    if missing:
        raise ConfigError(f"{place}.params: {make.__qualname__} needs {', '.join(missing)}")
    for parameter in accepted:
        if parameter.name in params:
            _check_kind(parameter, params[parameter.name], f"{place}.params.{parameter.name}")


def _check_kind(parameter: inspect.Parameter, value: Any, place: str) -> None:
    """Raise ConfigError where a parameter is annotated as a number, a word or a switch and gets something else."""
    union = get_origin(parameter.annotation) in (Union, UnionType)
    allowed = get_args(parameter.annotation) if union else (parameter.annotation,)
    if value is None and NoneType in allowed:
        return
    kinds = [kind for kind in allowed if kind is not NoneType]
    if not kinds or any(kind not in KINDS for kind in kinds) or isinstance(value, Mapping) and "target" in value:
        return
    fitting = isinstance(value, bool) if bool in kinds else not isinstance(value, bool)
    if not (fitting and isinstance(value, tuple(t for kind in kinds for t in KINDS[kind][0]))):
        what = " or ".join(KINDS[kind][1] for kind in kinds)
        raise ConfigError(f"{place}: got {value!r}, expected {what}")


def _read(path: Path, chain: tuple[Path, ...]) -> DictConfig:
    """One file with what it includes; `chain` holds the files that led here."""
    by = f" (included by {chain[-1]})" if chain else ""
    if path.resolve() in [p.resolve() for p in chain]:
        raise ConfigError(f"{chain[0]}: include goes round in a circle: {' -> '.join(map(str, (*chain, path)))}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}{by}")
    try:
        text = path.read_text(encoding="utf-8")
        if not isinstance(yaml.compose(text, Loader=yaml.SafeLoader), yaml.MappingNode):
            raise ConfigError(f"{path}: not a YAML mapping: expected `key: value` lines at the top level")
        own = OmegaConf.load(io.StringIO(text))
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem or _first_line(error)}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not a YAML mapping: {_first_line(error)}") from error
    includes = own.pop("include", None) or []
    includes = [includes] if isinstance(includes, str) else list(includes)
    if not all(isinstance(name, str) for name in includes):
        raise ConfigError(f"{path}: include must be a list of file names, got {includes}")
    try:
        return OmegaConf.merge(*[_read(path.parent / name, (*chain, path)) for name in includes], own)
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a list over a mapping
        raise ConfigError(f"{path} does not merge with what it includes: {_first_line(error)}") from error


def _parse(text: str, word: str) -> Any:
    """The value of an override, read as YAML the way configuration files are (1e-5 is a number)."""
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"override {word!r}: {text!r} is not a YAML value") from error


def _override(tree: dict, keys: list[str], value: Any, *, add: bool) -> None:
    """Set one value; a mapping given for a mapping changes only the keys it names, and those must exist too."""
    node: Any = tree
    for depth, key in enumerate(keys):
        index = _index(node, key)
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
            _override(tree, [*keys, str(key)], child, add=add)
    else:
        parent[index] = value


def _index(node: Any, key: str) -> Any:
    """How `key` is found in a mapping or list, None where it is not there."""
    if isinstance(node, dict):
        return next((k for k in node if str(k) == key), None)
    if isinstance(node, list) and key.isdigit() and int(key) < len(node):
        return int(key)
    return None


def _paths(node: Any, prefix: str = "") -> Iterator[str]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in pairs:
        yield f"{prefix}{key}"
        yield from _paths(child, f"{prefix}{key}.")


def _nearest_path(key: str, tree: dict) -> str:
    """The known key an override may have meant: one that ends alike before one that looks alike."""
    known, leaf = list(_paths(tree)), key.rsplit(".", 1)[-1]
    same_leaf = [p for p in known if p.rsplit(".", 1)[-1] == leaf]
    return _nearest(key, same_leaf or known) + " (a leading + adds a key)"


def _nearest(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.0)
    return f"; the nearest known is {prefix}{close[0]}" if close else ""


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
