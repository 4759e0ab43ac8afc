"""Flags of the command line that set a model's configuration, as its YAML declares them under `flags:`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ldm import config
from ldm.engine.assemble import family_cards, read_model

KINDS = ("word", "count", "natural", "number", "switch")
KEYS = ("key", "type", "help", "choices", "divide", "also")


@dataclass(frozen=True)
class Flag:
    """A flag of a model.

    Args:
        name: without dashes.
        keys: dotted settings that it sets.
        kind: of its value: "word", "count" (from 1), "natural" (from 0), "number" or "switch".
        help: for --help.
        choices: the words it takes; empty: any.
        divide: the setting is the value divided by this, rounded down.
        also: other settings that it sets where its value differs from the model's, with their values.
        families: those that have it.
    """

    name: str
    keys: tuple[str, ...]
    kind: str = "word"
    help: str = ""
    choices: tuple[str, ...] = ()
    divide: int = 1
    also: Mapping[str, object] = field(default_factory=dict)
    families: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, name: str, entry: Mapping, *, family: str) -> "Flag":
        """From an entry of `flags:`. Raises ValueError that names it."""
        place = f"config.flags.{name}"
        if not isinstance(entry, Mapping) or not {"key"} <= entry.keys() <= set(KEYS):
            raise ValueError(f"{place}: got {entry!r}, expected key, and perhaps {', '.join(KEYS[1:])}")
        keys = entry["key"] if isinstance(entry["key"], list) else [entry["key"]]
        kind, divide, also = entry.get("type") or "word", entry.get("divide") or 1, entry.get("also") or {}
        if kind not in KINDS or not isinstance(divide, int) or divide < 1 or not isinstance(also, Mapping):
            got = f"type {kind!r}, divide {divide!r} and also {also!r}"
            raise ValueError(f"{place}: got {got}, expected one of {', '.join(KINDS)}, a whole number and a mapping")
        choices = tuple(map(str, entry.get("choices") or ()))
        return cls(name, tuple(map(str, keys)), kind, str(entry.get("help") or ""), choices, divide, also, (family,))

    def words(self, value: object, settings) -> list[str]:
        """The override words of a value. Raises ValueError for a value that is not among the choices."""
        if self.choices and value not in self.choices:
            raise ValueError(f"--{self.name}: got {value!r}, expected one of {', '.join(self.choices)}")
        if self.divide > 1:
            value = int(value) // self.divide
        text = str(value).lower() if isinstance(value, bool) else value
        words = [f"+{key}={text}" for key in self.keys]
        if all(config.select(settings, key) == value for key in self.keys):
            return words
        return [f"+{key}={'null' if other is None else other}" for key, other in self.also.items()] + words


def flags_of(settings) -> dict[str, Flag]:
    """The flags that a model's configuration declares. Raises ValueError that names what is wrong with one."""
    entries, family = config.plain(settings.get("flags") or {}), str(settings.get("family") or "this model")
    return {name: Flag.from_config(name, entry, family=family) for name, entry in entries.items()}


def known_flags() -> dict[str, Flag]:
    """The flags of all families, for --help: one entry per name, with the families that have it."""
    known: dict[str, Flag] = {}
    for card in family_cards():
        for name, flag in flags_of(read_model(card)).items():
            other = known.get(name)
            if other is not None:
                limited = other.choices and flag.choices
                choices = tuple(dict.fromkeys((*other.choices, *flag.choices))) if limited else ()
                families = (*other.families, *flag.families)
                flag = Flag(name, other.keys, other.kind, other.help, choices, families=families)
            known[name] = flag
    return known


def flag_words(settings, given: Mapping[str, object]) -> list[str]:
    """Override words of the flags that were given, in the order in which the model declares them.

    Raises ValueError for a flag that the model lacks.
    """
    own = flags_of(settings)
    for name in given:
        if name not in own:
            raise ValueError(f"--{name}: this model ({_family(settings)}) has no such setting; it has {_names(own)}")
    return [word for name, flag in own.items() if name in given for word in flag.words(given[name], settings)]


def _family(settings) -> str:
    return str(settings.get("family") or "of no known family")


def _names(flags: Iterable[str]) -> str:
    return ", ".join(f"--{name}" for name in flags) or "no flags"
