"""Load YAML files and build objects from them; the only package that reads YAML, `target:` and `include:`.

A configuration is data: it can name only classes that the project declares buildable. No other code is executed.
"""

from ldm.config.building import check_target, instantiate
from ldm.config.errors import ConfigError
from ldm.config.overrides import Text
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
    "Text",
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
