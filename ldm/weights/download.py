"""Download a weight file by HTTP: resumable, verified, and atomic.

Uses what the Hugging Face Hub, its mirrors and plain servers have in common: redirects, ranges and entity tags. The
Hub's `X-Linked-Etag` is the SHA-256 of a large file, and `X-Repo-Commit` the commit of the file. Only the standard
library is used, since a client of the Hub has a cache of its own and does not support other servers.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from ldm.files import NOFOLLOW, read_text, write_atomically
from ldm.printable import printable
from ldm.weights.checkpoint import sha256 as sha256_of

BLOCK = 1 << 20
TRIES = 6  # times that a connection may break without a byte received in between
TIMEOUT = 30  # seconds without an answer
LARGER = 1.5  # maximum ratio of the size of a file to that of its entry
LARGEST = 1 << 40  # bytes, if neither the entry nor the server names a size
FREE = 200 << 20  # bytes of the disk that stay free
SHA256 = re.compile(r"[0-9a-f]{64}")
BUSY = (429, 500, 502, 503, 504)  # HTTP status of a server that may answer later
HEADERS = {"User-Agent": "mgld-vsr", "Accept-Encoding": "identity"}
LOST = (http.client.HTTPException, ConnectionError, TimeoutError, urllib.error.URLError)

Report = Callable[[int, int], None]  # (bytes so far, all bytes, or at most so many)


class DownloadError(OSError):
    """A file that could not be downloaded; the message is one line with a remedy."""


class NotFound(DownloadError):
    """The server has no such file."""


@dataclass(frozen=True)
class Fetched:
    """A downloaded file: its address, bytes, SHA-256, entity tag and commit ("" if unknown)."""

    url: str
    size: int
    sha256: str
    etag: str = ""
    commit: str = ""
    stated: str = ""


@dataclass(frozen=True)
class _Answer:
    """The headers of a server's answer about a file."""

    etag: str = ""
    commit: str = ""
    stated: str = ""  # SHA-256 by the Hub
    size: int | None = None


def fetch(
    url: str,
    path: Path,
    *,
    size: int = 0,
    sha256: str = "",
    report: Report = lambda done, total: None,
    wait: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Download `url` to `path`, which is created when its content is complete and verified.

    An interrupted download is resumed from `path`.part, unless the file has changed on the server. `size` (approximate)
    limits the number of bytes; `sha256` holds all or the first digits of the hash. `wait(seconds)` is called before
    another try.

    Raises NotFound or DownloadError, and OSError if the disk is full or `path` cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, lock = path.with_name(f"{path.name}.part"), FileLock(path.with_name(f".{path.name}.lock"))
    try:
        with lock.acquire(timeout=0):
            fetched = _fetch_part(url, part, size, report, wait)
            _verify(fetched, part, sha256)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
            _note_of(part).unlink(missing_ok=True)
    except Timeout:
        raise DownloadError(f"{path}: another process downloads this file; wait for it") from None
    finally:
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
    return fetched


def _fetch_part(url: str, part: Path, size: int, report: Report, wait: Callable[[float], None]) -> Fetched:
    """Receive all bytes into `part`, reconnecting as often as necessary."""
    known, failures = _read_note(part, url), 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            known = _receive(url, part, known, size, report)
            return Fetched(url, part.stat().st_size, sha256_of(part), known.etag, known.commit, known.stated)
        except LOST as error:
            if isinstance(error, urllib.error.HTTPError) and error.code not in BUSY:
                _refuse(url, error)
            failures = 1 if part.exists() and part.stat().st_size > before else failures + 1
            if failures >= TRIES:
                reason = printable(getattr(error, "reason", error) or type(error).__name__, 120)
                raise DownloadError(f"{url}: {reason}; run the same command again to resume") from None
            known = _read_note(part, url)
            wait(min(2**failures, 30))


def _receive(url: str, part: Path, known: _Answer, size: int, report: Report) -> _Answer:
    """Request the bytes that are missing in `part`, append them, and return the headers.

    Without an entity tag from an earlier connection, or if the server answers with the whole file, starts from 0.
    """
    done = part.stat().st_size if part.is_file() and known.etag else 0
    if known.size is not None and done == known.size:
        return known
    headers = HEADERS | ({"Range": f"bytes={done}-", "If-Range": known.etag} if done else {})
    with contextlib.closing(_open(url, headers)) as response:
        answer = _read_answer(response)
        resumed = response.status == 206 and answer.etag == known.etag and answer.size == known.size
        if response.status == 206 and not resumed:
            part.unlink()
            raise ConnectionError("the file changed on the server")
        done = done if resumed else 0
        most = int(size * LARGER) if size else LARGEST
        _check_size(url, answer.size, most, part, done)
        answer = replace(answer, commit=answer.commit or known.commit, stated=answer.stated or known.stated)
        _write_note(part, url, answer)
        with _appending(part, fresh=not resumed) as file:
            _copy(response, file, done, most if answer.size is None else answer.size, report)
    if answer.size is not None and part.stat().st_size < answer.size:
        raise ConnectionError(f"the connection broke after {part.stat().st_size} of {answer.size} bytes")
    return answer


def _copy(response, file: BinaryIO, done: int, most: int, report: Report) -> None:
    """Append the bytes of an answer to `done` earlier ones, up to `most` in all."""
    report(done, most)
    while block := response.read(BLOCK):
        done += len(block)
        if done > most:
            raise DownloadError(f"got more than the {most} bytes that were expected; try another mirror")
        file.write(block)
        report(done, most)


def _open(url: str, headers: dict[str, str]):
    """Open an address, following redirects; headers of the Hub before a redirect are kept in `linked`."""
    follow = _Redirects()
    response = urllib.request.build_opener(follow).open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    response.linked = follow.linked
    return response


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, never from https to http or to another protocol, and keeps the Hub's own headers."""

    def __init__(self) -> None:
        self.linked: dict[str, str] = {}

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        self.linked |= {key.lower(): value for key, value in headers.items() if key.lower().startswith("x-")}
        old, new = urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl).scheme
        if new != "https" and new != old:
            raise DownloadError(f"{req.full_url}: got a redirect to {new}, expected https; try another mirror")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _read_answer(response) -> _Answer:
    headers = response.linked | {key.lower(): value for key, value in response.headers.items()}
    length = headers.get("content-length", "")
    size = int(length) if length.isdecimal() else None
    if response.status == 206:
        match = re.fullmatch(r"bytes \d+-\d+/(\d+)", headers.get("content-range", ""))
        size = int(match[1]) if match else None
    linked = headers.get("x-linked-etag", "").removeprefix("W/").strip('"')
    etag = headers.get("etag", "")
    return _Answer(
        etag="" if etag.startswith("W/") else etag[:200],
        commit=headers.get("x-repo-commit", "")[:64],
        stated=linked if SHA256.fullmatch(linked) else "",
        size=size,
    )


def _check_size(url: str, total: int | None, most: int, part: Path, done: int) -> None:
    """Raise DownloadError if the file is far larger than its entry says or does not fit on the disk."""
    if total is None:
        return
    if total > most:
        raise DownloadError(f"{url}: got {total} bytes, expected at most {most}; try another mirror")
    free = shutil.disk_usage(part.parent).free
    if total - done + FREE > free:
        got, wanted = free / 1e9, (total - done + FREE) / 1e9
        raise DownloadError(f"{part.parent}: got {got:.1f} GB of free disk, expected {wanted:.1f} GB; free some")


def _verify(fetched: Fetched, part: Path, sha256: str) -> None:
    """Compare with the known hash and with that of the Hub; a wrong file is removed. Raises DownloadError."""
    for wanted, source in ((sha256, "the entry"), (fetched.stated, "the Hub")):
        if wanted and not fetched.sha256.startswith(wanted):
            part.unlink()
            _note_of(part).unlink(missing_ok=True)
            got = f"got SHA-256 {fetched.sha256[:16]}..., expected {wanted[:16]}... of {source}"
            raise DownloadError(f"{fetched.url}: {got}; try again or use another mirror")


def _refuse(url: str, error: urllib.error.HTTPError) -> None:
    """Raise DownloadError or NotFound for a permanent status, or ConnectionError for a temporary one."""
    with contextlib.closing(error):
        if error.code in (404, 410):
            raise NotFound(f"{url}: no such file (HTTP {error.code})") from None
        if error.code in (401, 403):
            todo = "accept the licence there in a browser, and put the file into the folder by hand"
            raise DownloadError(f"{url}: only with an account (HTTP {error.code}); {todo}") from None
        if error.code == 416:
            raise DownloadError(f"{url}: the file is shorter than before; remove the .part file") from None
        raise DownloadError(f"{url}: HTTP {error.code}; try again later or use another mirror") from None


# ---- the part and its note


@contextlib.contextmanager
def _appending(part: Path, *, fresh: bool) -> Iterator[BinaryIO]:
    """Open a partial file for writing at its end, or emptied. Raises OSError for a link."""
    flags = os.O_WRONLY | os.O_CREAT | NOFOLLOW | (os.O_TRUNC if fresh else os.O_APPEND)
    with os.fdopen(os.open(part, flags, 0o666), "wb" if fresh else "ab") as file:
        yield file


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_note(part: Path, url: str, answer: _Answer) -> None:
    write_atomically(_note_of(part), json.dumps({"url": url, **asdict(answer)}).encode())


def _read_note(part: Path, url: str) -> _Answer:
    """Return the headers stored when `part` was begun; empty ones if there are none for this address."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        noted = json.loads(read_text(_note_of(part), 1 << 16))
        if noted.pop("url") == url and isinstance(noted["etag"], str) and isinstance(noted["size"], int | None):
            return _Answer(**noted)
    return _Answer()
