from random import Random

import pytest

from basicsr_deg.recurrent_clips import Key, neighbour_index, recurrent_frames, recurrent_keys


def test_every_frame_of_every_clip_is_a_sample_but_those_held_out():
    counts = {"000": 2, "001": 3, "240": 1}
    assert recurrent_keys(counts) == [Key("001", 0), Key("001", 1), Key("001", 2), Key("240", 0)]
    assert recurrent_keys(counts, held_out=True) == [Key("000", 0), Key("000", 1)]
    assert recurrent_keys(counts, partition="official", held_out=True) == [Key("240", 0)]
    with pytest.raises(ValueError, match="'REDS5'"):
        recurrent_keys(counts, partition="REDS5")


def test_the_interval_is_drawn_even_where_there_is_one():
    rng, plain = Random(4), Random(4)
    assert recurrent_frames(Key("001", 5), rng) == [5, 6, 7]
    plain.choice([1])
    assert rng.random() == plain.random()


def test_a_start_too_late_is_drawn_and_the_direction_last():
    rng, plain = Random(9), Random(9)
    frames = recurrent_frames(Key("001", 11), rng, num_frame=3, interval_list=[2, 3], random_reverse=True, length=12)
    interval = plain.choice([2, 3])
    start = plain.randint(0, 12 - 3 * interval)
    expected = list(range(start, start + 3 * interval, interval))
    assert frames == (expected[::-1] if plain.random() < 0.5 else expected)
    assert recurrent_frames(Key("001", 9), Random(0), length=12) == [9, 10, 11]


def test_a_clip_that_is_too_short_is_named():
    with pytest.raises(ValueError, match="clip 007 of 5 frames, expected 6"):
        recurrent_frames(Key("007", 0), Random(0), interval_list=[2], length=5)


def test_a_neighbour_is_before_or_behind():
    assert [neighbour_index(draw) for draw in (0.0, 0.49, 0.5, 0.51, 0.99)] == [0, 0, 0, 2, 2]
