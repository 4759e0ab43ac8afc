"""Sources of weight files: the mapping `source:` of an entry of `weights:` in a model's YAML.

Keys: `hub`, repositories of the Hugging Face Hub in the order in which they are tried; `revision` of all of them;
`paths`, names in the repository, the first that exists; `url`, another address of the file; `page`, the address at
which a person must fetch it; `bytes`, about; `sha256`, or the first digits of it, absent if unknown; `licence`.
"""

import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from ldm.weights.files import WeightFile
from ldm.weights.safe import SUFFIXES

HUB = "https://huggingface.co"
KEYS = ("hub", "revision", "paths", "url", "page", "bytes", "sha256", "licence")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
UNSTATED = "not stated"


@dataclass(frozen=True)
class Origin:
    """The source of one weight file.

    Args:
        name: name of the entry of `weights:`.
        target: path of the file in a folder of weights, without its suffix.
        hub, revision, paths, url, page, sha256, licence: see the module.
        size: about so many bytes; 0 if unknown.
    """

    name: str
    target: str
    hub: tuple[str, ...] = ()
    revision: str = "main"
    paths: tuple[str, ...] = ()
    url: str = ""
    page: str = ""
    size: int = 0
    sha256: str = ""
    licence: str = UNSTATED

    @classmethod
    def of(cls, entry: WeightFile) -> "Origin":
        """Read the `source:` of an entry. Raises ValueError with the key of an invalid value."""
        given, place = dict(entry.source), f"config.weights.{entry.name}.source"
        if unknown := given.keys() - set(KEYS):
            raise ValueError(f"{place}: got {sorted(unknown)}, expected some of {', '.join(KEYS)}")
        hub, paths = _words(given, "hub", place), _words(given, "paths", place)
        texts = {key: str(given[key]) for key in ("revision", "url", "page", "sha256", "licence") if key in given}
        size = given.get("bytes", 0)
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"{place}.bytes: got {size!r}, expected a number of bytes")
        if bool(hub) != bool(paths) or not all(map(REPOSITORY.fullmatch, hub)):
            got = f"hub {list(hub)} and paths {list(paths)}"
            raise ValueError(f"{place}: got {got}, expected OWNER/NAME and the names of files in it")
        if bad := [path for path in (*paths, *entry.files[:1]) if not is_inside(path)]:
            raise ValueError(f"{place}.paths: got {bad[0]!r}, expected a path inside the repository")
        if not re.fullmatch(r"[0-9a-f]{0}|[0-9a-f]{8,64}", texts.get("sha256", "")):
            raise ValueError(f"{place}.sha256: got {texts['sha256']!r}, expected at least 8 hexadecimal digits")
        if any(not texts.get(key, "https://").startswith("https://") for key in ("url", "page")):
            raise ValueError(f"{place}: got an address without https://, expected one with it")
        return cls(entry.name, entry.files[0], hub, paths=paths, size=size, **texts)

    def addresses(self, endpoint: str = HUB) -> list[str]:
        """Return the addresses of the file in the order in which to try them; none if a person must fetch it.

        `endpoint` is the address of the Hub or of a mirror that has the same paths.
        """
        base, revision = endpoint.rstrip("/"), urllib.parse.quote(self.revision, safe="")
        paths = [urllib.parse.quote(path) for path in self.paths]
        found = [f"{base}/{hub}/resolve/{revision}/{path}" for hub in self.hub for path in paths]
        return [*found, self.url] if self.url else found

    def saved_as(self, address: str) -> str:
        """Return the path, in a folder of weights, of the file that comes from an address."""
        suffix = PurePosixPath(urllib.parse.urlsplit(address).path).suffix
        return self.target if self.target.endswith(SUFFIXES) else f"{self.target}{suffix}"

    def beside(self, path: str, endpoint: str = HUB) -> list[str]:
        """Return the addresses of another file of the same repositories, such as unet/config.json."""
        other = Origin(path, path, self.hub, self.revision, (path,) if self.hub else ())
        return other.addresses(endpoint)

    @property
    def place(self) -> str:
        """Where a person finds the file."""
        if self.hub:
            return f"{HUB}/{self.hub[0]}"
        return self.url or self.page or "no known place"


def _words(given: Mapping, key: str, place: str) -> tuple[str, ...]:
    value = given.get(key) or []
    if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
        raise ValueError(f"{place}.{key}: got {value!r}, expected a list of words")
    return tuple(value)


def is_inside(path: str) -> bool:
    """Whether a relative path with slashes stays in its folder."""
    pure = PurePosixPath(path)
    return bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts and "\\" not in path
