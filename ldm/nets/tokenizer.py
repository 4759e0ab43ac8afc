"""CLIP's byte-pair tokenizer (Radford et al. 2021; Sennrich et al. 2016): texts -> rows of token ids."""

import gzip
import heapq
import logging
import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

BUILDABLE = ("ClipTokenizer", "read_merges")

_log = logging.getLogger(__name__)

MERGES = 48894  # pairs of the released vocabulary: 2 * 256 letters, these and two marks make 49408 ids
_LARGEST_FILE = 16 * 2**20  # characters of a file of merges; the released one has half a million
_CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d)")
_WORD_END = "</w>"


def read_merges(path: str | Path) -> list[tuple[str, str]]:
    """The pairs of a `merges.txt` (or `.gz`) in their order; a first line that starts with # is skipped.

    Raises ValueError naming the file where it is not one, FileNotFoundError where it is missing.
    """
    path = Path(path)
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            text = file.read(_LARGEST_FILE + 1)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is not a text of merges: {error}; take merges.txt of the released weights") from error
    lines = [line for line in text.splitlines() if line.strip()]
    pairs = [tuple(line.split()) for line in lines if not line.startswith("#version")][:MERGES]
    if len(text) > _LARGEST_FILE or len(pairs) < MERGES or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{path} holds {len(pairs)} merges, expected {MERGES} pairs; take the released merges.txt")
    return pairs


def _byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in a file of merges, printable bytes first: the order of their ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + k) for k, byte in enumerate(others)}


def _kind(letter: str) -> str:
    """Letter, number, space or other, as a word is made of one kind. The separators 28 to 31 are no spaces here."""
    category = unicodedata.category(letter)[0]
    if category in "LN":
        return category
    return "S" if letter.isspace() and not "\x1c" <= letter <= "\x1f" else "O"


def split_words(text: str) -> list[str]:
    """Words of a lower-case text: runs of letters, single digits, runs of other signs, and 's 't 're 've 'm 'll 'd."""
    kinds, words, start = [_kind(letter) for letter in text], [], 0
    while start < len(text):
        contraction, end = _CONTRACTION.match(text, start), start + 1
        if contraction:
            end = contraction.end()
        elif kinds[start] != "N":
            while end < len(text) and kinds[end] == kinds[start]:
                end += 1
        if kinds[start] != "S":
            words.append(text[start:end])
        start = end
    return words


class _Chain:
    """Symbols in a row; a symbol that was joined to the one before it is empty, and skipped."""

    def __init__(self, symbols: list[str]) -> None:
        self.symbols = symbols
        self.after, self.before = [k + 1 for k in range(len(symbols))], [k - 1 for k in range(len(symbols))]

    def pair(self, k: int) -> tuple[str, str] | None:
        """The symbol at k and the one after it; None where either is missing."""
        after = self.after[k]
        return (self.symbols[k], self.symbols[after]) if self.symbols[k] and after < len(self.symbols) else None

    def join(self, k: int) -> list[int]:
        """Join the pair at k, and return the places of the new pairs."""
        gone = self.after[k]
        self.symbols[k] += self.symbols[gone]
        self.symbols[gone], self.after[k] = "", self.after[gone]
        if self.after[k] < len(self.symbols):
            self.before[self.after[k]] = k
        return [place for place in (self.before[k], k) if place >= 0]


class ClipTokenizer:
    """Texts as the token ids that the text tower of CLIP was trained with.

    Args:
        merges: pairs of symbols, the one to join first in front; see `read_merges`.
        context_length: tokens per row, start and end included.
        padding: id that fills a row behind its end; 0 ("!") in the Stable Diffusion 2 family.
    """

    def __init__(self, merges: Sequence[tuple[str, str]], *, context_length: int = 77, padding: int = 0) -> None:
        self.letters = _byte_letters()
        symbols = [*self.letters.values(), *(letter + _WORD_END for letter in self.letters.values())]
        self.ids = {symbol: k for k, symbol in enumerate([*symbols, *("".join(pair) for pair in merges)])}
        self.ranks = {pair: k for k, pair in enumerate(merges)}
        self.start = len(symbols) + len(merges)
        self.end = self.start + 1
        self.context_length, self.padding = context_length, padding

    def encode(self, text: str) -> list[int]:
        """Token ids of a text of any length, without start, end and padding.

        Words that look like the marks of start and end are tokenized like any others.
        """
        return [self.ids[symbol] for word in split_words(text.lower()) for symbol in self._join(word)]

    def _join(self, word: str) -> list[str]:
        """The symbols of a word: its bytes, the pair of the lowest rank joined wherever it stands, again and again.

        Pairs wait in a heap by rank and place, so that the time grows little faster than the length of the word.
        """
        symbols = [self.letters[byte] for byte in word.encode("utf-8", "replace")]
        symbols[-1] += _WORD_END
        chain = _Chain(symbols)
        waiting = [(self.ranks[pair], k) for k, pair in enumerate(pairwise(symbols)) if pair in self.ranks]
        heapq.heapify(waiting)
        while waiting:
            rank, changed = waiting[0][0], []
            while waiting and waiting[0][0] == rank:
                _, k = heapq.heappop(waiting)
                if self.ranks.get(chain.pair(k)) == rank:
                    changed += chain.join(k)
            for k in changed:
                if (pair := chain.pair(k)) in self.ranks:
                    heapq.heappush(waiting, (self.ranks[pair], k))
        return [symbol for symbol in chain.symbols if symbol]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(n, context_length) int64: start, the tokens, end, padding. Longer texts are cut, with a warning."""
        rows = torch.full((len(texts), self.context_length), self.padding, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            tokens, room = self.encode(text), self.context_length - 2
            if len(tokens) > room:
                _log.warning("a prompt of %d tokens is cut to %d: %.60s...", len(tokens), room, text)
            tokens = [self.start, *tokens[:room], self.end]
            row[: len(tokens)] = torch.tensor(tokens)
        return rows
