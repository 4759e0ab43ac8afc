"""Compare values of a configuration with type annotations, and describe annotations in messages."""

import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    Path: "a path",
    NoneType: "null",
}
LISTS = (list, tuple, Sequence, Iterable, Collection)


def signature_of(make: Callable) -> list[inspect.Parameter]:
    """Return the parameters of a callable, with evaluated annotations if possible; [] without a signature."""
    for evaluate in (True, False):
        try:
            return list(inspect.signature(make, eval_str=evaluate).parameters.values())
        except (TypeError, ValueError, NameError, AttributeError):
            continue
    return []


def union_members(annotation: Any) -> tuple:
    """Return the members of a union; for any other annotation, the annotation itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def matches_annotation(value: Any, annotation: Any) -> bool:
    """Whether a value has the type of an annotation; True for annotations that cannot be checked."""
    return any(_fits(value, choice) for choice in union_members(annotation))


def _fits(value: Any, annotation: Any) -> bool:
    origin, inner = get_origin(annotation) or annotation, get_args(annotation)
    if origin in (Any, inspect.Parameter.empty):
        return True
    if origin in (None, NoneType):
        return value is None
    if origin is Literal:
        return isinstance(value, (str, int, NoneType)) and value in inner
    if origin in NAMES:
        return _fits_scalar(value, origin)
    if origin is Callable:
        return callable(value)
    if origin in LISTS:
        return isinstance(value, (list, tuple)) and _all_fit(value, origin, inner)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            matches_annotation(v, inner[1]) for v in value.values() if len(inner) == 2
        )
    if not isinstance(origin, type) or getattr(origin, "_is_protocol", False):
        return True
    return isinstance(value, origin)


def _fits_scalar(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, str if kind is Path else kind)


def _all_fit(values: Sequence, origin: Any, inner: tuple) -> bool:
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return len(values) == len(inner) and all(map(matches_annotation, values, inner))
    return not inner or all(matches_annotation(value, inner[0]) for value in values)


def describe_annotation(annotation: Any) -> str:
    """Return a description of an annotation for messages."""
    members = [member for member in union_members(annotation) if member is not NoneType]
    return " or ".join(dict.fromkeys(map(_describe, members)))


def _describe(annotation: Any) -> str:
    origin, inner = get_origin(annotation) or annotation, get_args(annotation)
    if origin in NAMES:
        return NAMES[origin]
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is Callable:
        return "a target that can be called"
    if origin in LISTS:
        return f"a list, each {describe_annotation(inner[0])}" if inner else "a list"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping, each {describe_annotation(inner[1])}" if len(inner) == 2 else "a mapping"
    return f"a {getattr(origin, '__name__', str(origin))}"
