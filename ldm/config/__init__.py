"""YAML -> objects. The only room that reads YAML and knows what `target:` and `include:` mean.

A configuration is data, whoever wrote it: it names classes that the project declares buildable, and nothing else runs.
"""

from ldm.config.building import check_target, instantiate
from ldm.config.errors import ConfigError
from ldm.config.reading import (
    load,
    merge,
    merge_under,
    override,
    part_of,
    plain,
    save,
    select,
    to_yaml,
    trusted,
    with_document,
)

__all__ = [
    "ConfigError",
    "check_target",
    "instantiate",
    "load",
    "merge",
    "merge_under",
    "override",
    "part_of",
    "plain",
    "save",
    "select",
    "to_yaml",
    "trusted",
    "with_document",
]
