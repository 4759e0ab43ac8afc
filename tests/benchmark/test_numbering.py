"""Frame numbers in file names: gaps, and the comparison of two folders."""

import pytest

from ldm.benchmark.numbering import gap_in, numbers_of, other_frames


def named(numbers, form="{:08d}.png"):
    return [form.format(number) for number in numbers]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (named([0, 1, 2]), [0, 1, 2]),
        (named([0, 1, 2], "{:04d}_x4.png"), [0, 1, 2]),  # the 4 is constant
        (named([7, 8], "clip3_Frame{}.PNG"), [7, 8]),
        (["f_7.png"], [7]),
        (["a.png", "b.png"], None),
        (["a1.png", "b2.png"], None),
        (["s1_1.png", "s1_2.png", "s2_1.png"], None),
        (["0_psnr27.31.png", "1_psnr26.02.png", "2_psnr28.77.png"], [0, 1, 2]),
        (["0_at41.png", "1_at47.png", "3_at58.png"], [0, 1, 3]),
        (["0.033.png", "0.067.png", "0.1.png"], None),
        (["12-30-58.png", "12-30-59.png", "12-31-00.png"], None),
        (["1_a1.png", "2_a1.png", "3_a2.png"], [1, 2, 3]),
        ((), None),
    ],
)
def test_the_number_is_the_part_that_differs(names, numbers):
    assert numbers_of(names) == numbers


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (named([0, 1, 2, 4]), "frame 00000003.png is missing (4 exist)"),
        (named([0, 1, 3], "{:04d}_x4.png"), "frame 0002_x4.png is missing (3 exist)"),
        (named([1, 3, 7]), "frame 00000005.png is missing (3 exist)"),
        (named([0, 50, 99]), None),
        (named([5, 6, 7]), None),
        (named([4, 2]), None),
        ([*named([0, 1]), "avg.png"], "avg.png is not named like the other frames, such as 00000000.png"),
        (["0 (1).png", *named([0, 1, 2])], "0 (1).png is not named like"),
        (["1.jpg", "1.png", "2.png"], "1.jpg and 1.png have the same number"),
        (["a_2.png", "a_3.png", "x_0.png", "x_1.png"], "a_3.png comes before x_0.png"),
        (["0.png", "avg.png"], "avg.png has no number"),
    ],
)
def test_gaps_and_foreign_files_are_named(names, said):
    found = gap_in(names)
    assert found is None if said is None else said in found


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ([0, 1, 2], [0, 1, 2], True),
        ([1, 2, 3], [0, 1, 2], True),  # counted from 1
        ([0, 1, 2], [10, 20, 30], True),  # renumbered from 0
        ([0, 1, 2], [0, 50, 99], True),
        ([0, 50, 99], [0, 50, 99], True),
        ([0, 50, 99], [0, 1, 2], False),
        ([10, 11, 12], [0, 1, 2], False),
        ([0, 2, 4], [0, 1, 2], False),
        ([0, 1], [0, 1, 2, 3], True),  # the first frames
        ([1, 2], [0, 1, 2, 3], True),  # the first frames, numbered from 1 under other names
        ([0, 1], [1, 2, 3, 4], True),
        ([2, 3], [0, 1, 2, 3], False),
        ([0, 2], [0, 1, 2, 3], False),
        ([0, 1], [10, 11, 12], False),
        ([3], [0, 1, 2, 3], False),
    ],
)
def test_frames_match_those_of_the_clip(ours, theirs, same):
    said = other_frames(named(ours, "{}_x4.png"), named(theirs))
    assert (said is None) == same and (same or "frames are numbered" in said)
    assert other_frames(["a.png", "b.png"], named(theirs)) is None


def test_some_frames_with_the_names_of_the_clip_keep_their_numbers():
    assert other_frames(named([1, 2]), named([0, 1, 2, 3])) is not None
    assert other_frames(named([0]), named([0, 1, 2])) is None
    odd = ["0000_gop2.png", "0001_gop7.png", "0002_gop5.png", "0003_gop2.png"]
    assert other_frames(["0000_gop2.jpg", "0001_gop7.jpg"], odd) is None
    assert other_frames(["00000000_x4.png"], named([0, 1, 2])) is None
    assert other_frames(named([7]), named([3])) is None  # a reference of one frame matches any number
