"""Build objects from a configuration: every `target:` with its `params:`, children first."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.config.annotations import NAMES, describe_annotation, matches_annotation, signature_of, union_members
from ldm.config.bounds import bounded
from ldm.config.errors import ConfigError, brief, first_line, nearest
from ldm.config.reading import trusted
from ldm.config.targets import find_target

# Errors of constructors for invalid arguments; all but the NAMELESS are reported with the name of their type.
NAMELESS = (TypeError, ValueError)
MISTAKES = (*NAMELESS, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError, MemoryError)


def check_target(config: Mapping, key: str) -> None:
    """Raise ConfigError unless the value at a dotted key is a mapping with a `target`."""
    try:
        found = OmegaConf.select(config, key)
    except OmegaConfBaseException as error:
        raise ConfigError(f"config.{key}: {first_line(error)}") from error
    if not OmegaConf.is_dict(found) or "target" not in found:
        got = "nothing" if found is None else type(found).__name__.removesuffix("Config")
        raise ConfigError(f"config.{key}: got {got}, expected a mapping with a target")


def instantiate(node: Any, place: str | None = None, *, trust: Iterable[str] | None = None, **built: Any) -> Any:
    """Build every `target:` in `node` with its `params:`, children first, so constructors receive objects, not configs.

    Args:
        node: a configuration from `load`, or a part of it; mappings and lists without `target` keep their form.
        place: prefix of positions in messages. Default: `config` and the path of the node.
        trust: modules whose targets may be built besides those of the project. Default: those given to `load`.
        built: further arguments of the outermost target.

    Raises ConfigError for a target that may not be built; an argument that is unknown, missing or of another type than
    its annotation; a key beside `target` and `params`; an interpolation of a missing key; an error of a constructor.
    """
    if trust is None:
        trust = trusted(node)
    if OmegaConf.is_config(node):
        own = node._get_full_key(None)
        place = place or (f"config.{own}" if own else "config")
        try:
            node = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            at = f"config.{error.full_key}" if error.full_key else place
            raise ConfigError(f"{at}: {first_line(error)}") from error
    with bounded(place or "config"):
        return _build(node, place or "config", tuple(trust), built)


def _build(node: Any, place: str, trust: tuple[str, ...], built: Mapping[str, Any] | None = None) -> Any:
    if isinstance(node, list):
        return [_build(child, f"{place}[{i}]", trust) for i, child in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "target" not in node:
        return {key: _build(child, f"{place}.{key}", trust) for key, child in node.items()}
    make, params = _find(node, place, trust)
    parameters = _accepted(make, params, built or {}, place)
    for key, value in params.items():
        _refuse_target_for_scalar(parameters.get(key), value, f"{place}.params.{key}")
    params = {key: _build(child, f"{place}.params.{key}", trust) for key, child in params.items()}
    for key, value in params.items():
        _check_type(parameters.get(key), value, f"{place}.params.{key}")
    try:
        return make(**params, **(built or {}))
    except ConfigError:
        raise
    except MISTAKES as error:
        kind = "" if isinstance(error, NAMELESS) else f"{type(error).__name__}: "
        raise ConfigError(f"{place} -> {node['target']}: {kind}{first_line(error)}") from error


def _find(node: dict, place: str, trust: tuple[str, ...]) -> tuple[Callable, dict]:
    """Return the callable that a mapping with a `target` names, and its arguments before building."""
    if extra := [key for key in node if key not in ("target", "params")]:
        what = f"unknown key {brief(extra[0])} beside target and params"
        raise ConfigError(f"{place}: {what}{nearest(extra[0], ['params'])}")
    params = node.get("params") or {}
    if not isinstance(params, dict):
        raise ConfigError(f"{place}.params: got {type(params).__name__}, expected a mapping of argument names")
    return find_target(node["target"], place, trust), params


def _accepted(make: Callable, params: Mapping, built: Mapping, place: str) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a callable. Raises ConfigError for unknown, missing or duplicate arguments."""
    parameters = signature_of(make)
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if twice := params.keys() & built.keys():
        raise ConfigError(f"{place}.params.{min(twice)}: is given by the program; leave it out")
    if not parameters:
        return named
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in (*params, *built):
            if key not in named:
                who = f"{place}.params.{key}: {make.__qualname__}"
                raise ConfigError(f"{who} has no argument {brief(key)}{nearest(key, named)}")
    missing = [p.name for p in named.values() if p.default is p.empty and p.name not in {*params, *built}]
    if missing:
        raise ConfigError(f"{place}.params: {make.__qualname__} needs {', '.join(missing)}")
    return named


def _refuse_target_for_scalar(parameter: inspect.Parameter | None, value: Any, place: str) -> None:
    """Raise ConfigError for a mapping with a target in place of a string, number or boolean."""
    if parameter is None or not (isinstance(value, dict) and "target" in value):
        return
    if all(choice in NAMES for choice in union_members(parameter.annotation)):
        raise ConfigError(f"{place}: got a mapping with a target, expected {describe_annotation(parameter.annotation)}")


def _check_type(parameter: inspect.Parameter | None, value: Any, place: str) -> None:
    """Raise ConfigError if the type of an argument differs from its annotation."""
    if parameter is not None and not matches_annotation(value, parameter.annotation):
        raise ConfigError(f"{place}: got {brief(value)}, expected {describe_annotation(parameter.annotation)}")
