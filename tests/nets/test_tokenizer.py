import gzip
import logging
import random
import time
from itertools import pairwise
from pathlib import Path

import pytest

from ldm.nets.tokenizer import ClipTokenizer, read_merges, split_words

MERGES = Path(__file__).parents[2] / "assets" / "text" / "clip_merges.txt.gz"


@pytest.fixture(scope="module")
def tokenizer():
    return ClipTokenizer(read_merges(MERGES))


RECORDED = {  # by instant-clip-tokenizer 0.1.1
    "Hello  world!! 123 it's": [3306, 1002, 748, 272, 273, 274, 585, 568],
    "“curly” é É İstanbul ß ﬁ ½ ² Ⅷ": [
        728, 506, 20795, 728, 507, 4166, 4166, 328, 16384, 11231, 127, 509, 171, 105, 479, 33613, 41175, 158, 227, 371,
    ],
    "日本語 テスト a\u00a0b\u2003c": [39121, 44353, 34002, 508, 2429, 228, 32421, 486, 320, 321, 322],
    "&amp; &lt; naïve": [261, 6259, 282, 261, 3333, 282, 1097, 35689, 563],
    "<|startoftext|> x": [27, 347, 993, 6659, 4160, 91, 285, 343],
    "": [],
}  # fmt: skip
EMOJI = ["👩\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "👍🏽", "🇩🇪", "❤️", "1️⃣"]
SCRIPTS = [
    (0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F),
    (0xE00, 0xE7F), (0x1100, 0x11FF), (0x2000, 0x206F), (0x2070, 0x218F), (0x2190, 0x23FF), (0x3040, 0x30FF),
    (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF00, 0xFFEF), (0x1F300, 0x1FAFF), (0x1D400, 0x1D7FF),
]  # fmt: skip
WORDS = "a photograph of the old harbour best quality worst 4k 8K it's we've they'll I'm don't he'd you're".split()


def texts(count):
    """Words, contractions, numbers, scripts of many languages, emoji with joiners."""
    rng = random.Random(0)
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(0, 12)):
            first, last = rng.choice(SCRIPTS)
            letters = "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 6)))
            number = str(rng.randint(0, 99999))
            parts.append(rng.choice([rng.choice(WORDS), rng.choice(WORDS), rng.choice(EMOJI), number, letters]))
        yield rng.choice([" ", "  ", "\n", "", ", "]).join(parts)


@pytest.mark.parametrize("text", RECORDED)
def test_recorded_texts(tokenizer, text):
    assert tokenizer.encode(text) == RECORDED[text]


def test_equals_an_independent_tokenizer_on_2000_texts(tokenizer):
    other = pytest.importorskip("instant_clip_tokenizer", reason="pip install instant-clip-tokenizer").Tokenizer()
    wrong = [text for text in texts(2000) if tokenizer.encode(text) != [int(k) for k in other.encode(text)]]
    assert not wrong


def test_rows_are_start_tokens_end_padding(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        rows = tokenizer(["a cat", "", "cat " * 75, "cat " * 76])
        assert rows.shape == (4, 77) and rows[:, 0].eq(49406).all()
        assert rows[0].tolist() == [49406, 320, 2368, 49407] + [0] * 73
        assert rows[1, 1:3].tolist() == [49407, 0]
        assert rows[2:, 76].tolist() == [49407, 49407] and rows[2:, 75].tolist() == [2368, 2368]
    assert [record.getMessage()[:40] for record in caplog.records] == ["a prompt of 76 tokens is cut to 75: cat "]


def test_words():
    assert split_words("it's 12 don't!!'s 'tis a_b\x1cc") == [
        "it", "'s", "1", "2", "don", "'t", "!!'", "s", "'t", "is", "a", "_", "b", "\x1c", "c",
    ]  # fmt: skip


def test_a_word_of_any_length_and_half_a_surrogate_pair(tokenizer):
    assert len(tokenizer.encode("ab" * 5000)) > 100
    assert tokenizer.encode("\ud83d") == tokenizer.encode("?")


def joined_one_by_one(word, merges):
    """The definition: the first pair of the list that occurs is joined wherever it stands, from the left."""
    symbols = [*word[:-1], f"{word[-1]}</w>"]
    while known := [pair for pair in merges if pair in pairwise(symbols)]:
        k = 0
        while k < len(symbols) - 1:
            if (symbols[k], symbols[k + 1]) == known[0]:
                symbols[k : k + 2] = ["".join(known[0])]
            k += 1
    return symbols


def test_pairs_are_joined_in_the_order_of_any_list():
    rng = random.Random(0)
    for _ in range(200):
        symbols, merges = ["a", "b", "c", "a</w>", "b</w>", "c</w>"], []
        for _ in range(rng.randint(0, 12)):
            pair = rng.choice([s for s in symbols if not s.endswith("</w>")]), rng.choice(symbols)
            merges += [] if pair in merges else [pair]
            symbols.append("".join(pair))
        rng.shuffle(merges)  # even a list in which a pair is joined before its parts are
        tokenizer, word = ClipTokenizer(merges), "".join(rng.choices("abc", k=rng.randint(1, 20)))
        assert tokenizer.encode(word) == [tokenizer.ids[symbol] for symbol in joined_one_by_one(word, merges)]


def test_a_long_word_without_spaces_takes_seconds_at_most(tokenizer):
    """A caption file of 64 KiB may be one word; time that grew with its square was minutes."""
    word, began = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=20000)), time.process_time()
    assert len(tokenizer.encode(word)) > 1000
    assert time.process_time() - began < 5


def test_merges_can_be_plain_text(tmp_path):
    file = tmp_path / "merges.txt"
    file.write_bytes(gzip.decompress(MERGES.read_bytes()))
    assert read_merges(file) == read_merges(MERGES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("merges.txt", b"a b\n"),
        ("merges.txt", b"\xff\xfe\x00"),
        ("merges.txt.gz", b"no gzip"),
        ("merges.txt.gz", gzip.compress(b"a b\n" * 100, mtime=0)[:-10]),
        ("merges.txt", b"a b c\n" * 48894),
    ],
)
def test_a_file_that_holds_no_merges_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="merges.txt.*; take"):
        read_merges(tmp_path / name)
