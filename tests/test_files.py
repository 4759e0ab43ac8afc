"""Temporary names of files and folders."""

import pytest

from ldm.engine.resume import remove_partials
from ldm.files import is_temporary, set_aside


@pytest.mark.parametrize("name", ["out.mp4.work", "film.split", "é" * 120])
def test_a_folder_that_is_set_aside_keeps_its_content_under_a_temporary_name(tmp_path, name):
    folder = tmp_path / name
    (folder / "parts").mkdir(parents=True)
    aside = set_aside(folder)
    assert not folder.exists() and (aside / "parts").is_dir()
    assert aside.parent == tmp_path and is_temporary(aside.name) and not is_temporary(name)
    folder.mkdir()
    assert set_aside(folder) != aside


def test_a_folder_that_is_missing_is_not_set_aside(tmp_path):
    with pytest.raises(FileNotFoundError):
        set_aside(tmp_path / "out.mp4.work")


def test_what_a_killed_process_set_aside_is_removed_with_the_temporary_files_of_its_output(tmp_path):
    (tmp_path / "out.mp4.work").mkdir()
    set_aside(tmp_path / "out.mp4.work")
    remove_partials(tmp_path / "out.mp4")
    assert not list(tmp_path.iterdir())
