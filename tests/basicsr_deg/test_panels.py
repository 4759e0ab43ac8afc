"""Contact sheets of the stages of a degradation."""

import numpy as np

from basicsr_deg.panels import LINE, LINES, Panels, describe


def fill(panels, name, values, size=(20, 40)):
    notes = {"sigma": []}
    for value in values:
        notes["sigma"].append(value / 10)
        panels(name, notes, np.full((*size, 3), float(value)))


def test_stages_form_a_grid_of_the_same_frame():
    panels = Panels(width=64)
    fill(panels, "one", [10, 20, 30])
    fill(panels, "two", [110, 120, 130], size=(10, 20))
    fill(panels, "three", [210, 220], size=(9, 9))
    pictures = list(panels.pictures())
    assert len(pictures) == 2  # the third frame did not pass all stages
    cell = 32 + LINE * (LINES + 1)
    for k, picture in enumerate(pictures):
        assert picture.shape == (2 * cell, 2 * 64, 3) and picture.dtype == np.uint8
        for (row, column), base in {(0, 0): 10, (0, 1): 110, (1, 0): 210}.items():
            middle = picture[row * cell + 16, column * 64 + 32]
            assert np.abs(middle.astype(int) - (base + 10 * k)).max() <= 3


def test_the_number_of_frames_is_limited():
    panels = Panels(most=2)
    fill(panels, "one", [1, 2, 3, 4])
    assert len(list(panels.pictures())) == 2


def test_there_is_text_below_the_picture():
    panels = Panels(width=200)
    fill(panels, "blur_1", [0.0], size=(10, 20))
    (picture,) = panels.pictures()
    assert picture[:100].max() < 10 and picture[100:].max() > 150


def test_the_last_value_of_a_list_is_shown():
    assert describe({"mode": "up", "scale": [1.0, 1.23456], "gray": True, "size": 9}) == (
        "mode up, scale 1.23, gray true, size 9"
    )
