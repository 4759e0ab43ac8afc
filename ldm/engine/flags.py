"""Command-line flags of a model, declared in its YAML under `flags:`."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from ldm import config
from ldm.engine.assemble import family_cards, read_model

KINDS = ("word", "text", "positive_int", "non_negative_int", "number", "switch")
KEYS = ("key", "type", "help", "choices", "divide", "also", "caption")


@dataclass(frozen=True)
class Flag:
    """A command-line flag that sets values of a model's configuration.

    Args:
        name: without dashes.
        keys: dotted keys of the settings that it sets.
        kind: type of its value: "word", "text" (a word is read as an override, a text is not read), "positive_int",
            "non_negative_int", "number" or "switch".
        help: text for --help.
        choices: allowed values; empty for any.
        divide: the setting is the value divided by this number, rounded down.
        also: other settings (key -> value) that it sets if its value differs from the model's.
        caption: the value describes a clip; by default it is read from the text file beside the clip.
        families: families that have the flag.
    """

    name: str
    keys: tuple[str, ...]
    kind: str = "word"
    help: str = ""
    choices: tuple[str, ...] = ()
    divide: int = 1
    also: Mapping[str, object] = field(default_factory=dict)
    caption: bool = False
    families: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, name: str, entry: Mapping, *, family: str) -> "Flag":
        """Create a flag from an entry of `flags:`. Raises ValueError for an invalid entry."""
        place = f"config.flags.{name}"
        if not isinstance(entry, Mapping) or not {"key"} <= entry.keys() <= set(KEYS):
            raise ValueError(f"{place}: got {entry!r}, expected key, and optionally {', '.join(KEYS[1:])}")
        keys = entry["key"] if isinstance(entry["key"], list) else [entry["key"]]
        kind, divide, also = entry.get("type") or "word", entry.get("divide") or 1, entry.get("also") or {}
        if kind not in KINDS or not isinstance(divide, int) or divide < 1 or not isinstance(also, Mapping):
            got = f"type {kind!r}, divide {divide!r} and also {also!r}"
            raise ValueError(f"{place}: got {got}, expected one of {', '.join(KINDS)}, a whole number and a mapping")
        choices = entry.get("choices") or []
        if not isinstance(choices, list):
            raise ValueError(f"{place}: got choices {choices!r}, expected a list")
        text, caption = str(entry.get("help") or ""), bool(entry.get("caption"))
        return cls(name, tuple(map(str, keys)), kind, text, tuple(map(str, choices)), divide, also, caption, (family,))

    def overrides(self, value: object, settings) -> list[str | config.Text]:
        """Return the overrides for a value. Raises ValueError for a value outside `choices`."""
        if self.choices and value not in self.choices:
            raise ValueError(f"--{self.name}: got {value!r}, expected one of {', '.join(self.choices)}")
        if self.divide > 1:
            value = int(value) // self.divide
        text = str(value).lower() if isinstance(value, bool) else value
        words = [config.Text(key, text) if self.kind == "text" else f"+{key}={text}" for key in self.keys]
        if all(config.select(settings, key) == value for key in self.keys):
            return words
        return [f"+{key}={'null' if other is None else other}" for key, other in self.also.items()] + words


def flags_of(settings) -> dict[str, Flag]:
    """Return the flags that a configuration declares. Raises ValueError for an invalid entry."""
    entries, family = config.plain(settings.get("flags") or {}), str(settings.get("family") or "this model")
    return {name: Flag.from_config(name, entry, family=family) for name, entry in entries.items()}


@functools.cache
def known_flags() -> dict[str, Flag]:
    """Return the flags of all families for --help, one per name, with the families that have it."""
    known: dict[str, Flag] = {}
    for card in family_cards():
        for name, flag in flags_of(read_model(card)).items():
            other = known.get(name)
            if other is not None:
                limited = other.choices and flag.choices
                choices = tuple(dict.fromkeys((*other.choices, *flag.choices))) if limited else ()
                families = tuple(dict.fromkeys((*other.families, *flag.families)))
                flag = Flag(name, other.keys, other.kind, other.help, choices, families=families)
            known[name] = flag
    return known


def flag_overrides(settings, given: Mapping[str, object]) -> list[str | config.Text]:
    """Return the overrides for the given flags, in the order of their declaration.

    Raises ValueError for a flag that the model does not have.
    """
    own = flags_of(settings)
    if unknown := [name for name in given if name not in own]:
        family = settings.get("family") or "of no known family"
        names = ", ".join(f"--{name}" for name in own) or "no flags"
        raise ValueError(f"--{unknown[0]}: this model ({family}) has no such setting; it has {names}")
    return [word for name, flag in own.items() if name in given for word in flag.overrides(given[name], settings)]
