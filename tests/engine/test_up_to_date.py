"""Whether an output is up to date, and whether a folder was started with the same settings."""

import pytest

from ldm.engine import provenance
from ldm.engine.finished import OutputDiffers, finished, is_finished, stored_manifest

MADE_OF = {"input": {"path": "a", "sha256": "1"}, "weights": {"unet": {"path": "p", "sha256": "2"}}, "size": (4, 8)}


@pytest.fixture
def output(tmp_path):
    path = tmp_path / "out.png"
    path.write_bytes(b"pixels")
    provenance.write_record(path, MADE_OF)
    return path


def test_paths_are_not_compared(output):
    moved = {"input": {"path": "b", "sha256": "1"}, "weights": {"unet": {"path": "q", "sha256": "2"}}}
    assert finished(output, MADE_OF)["size"] == [4, 8] and is_finished(output, MADE_OF | moved)


@pytest.mark.parametrize(
    "change", [{"size": (4, 9)}, {"input": {"path": "a", "sha256": "3"}}, {"weights": {}}, {"seed": 1}]
)
def test_other_values_are_named(output, change):
    assert not is_finished(output, MADE_OF | change)
    with pytest.raises(OutputDiffers, match=r"out\.png"):
        finished(output, MADE_OF | change)


def test_a_changed_output_and_a_damaged_record_differ(output):
    output.write_bytes(b"others")
    with pytest.raises(OutputDiffers, match="frames have changed"):
        finished(output, MADE_OF)
    for content in ("[" * 100_000, "[1]", "{}", '{"input": 1, "weights": [], "size": 0, "output": {"sha256": ""}}'):
        provenance.record_path(output).write_text(content)
        with pytest.raises(OutputDiffers, match="not a record"):
            finished(output, MADE_OF)
    provenance.record_path(output).unlink()
    assert finished(output, MADE_OF) is None and not is_finished(output, MADE_OF)


def test_a_folder_keeps_the_settings_that_it_was_started_with(tmp_path):
    path = tmp_path / "manifest.json"
    assert stored_manifest(path, {"seed": 1}, remedy="repeat that") is None
    path.write_text('{"seed": 1, "clips": {}}')
    assert stored_manifest(path, {"seed": 1}, remedy="repeat that")["clips"] == {}
    with pytest.raises(OutputDiffers, match="started with seed=1, now 2; repeat that"):
        stored_manifest(path, {"seed": 2}, remedy="repeat that")
    path.write_text("[1]")
    with pytest.raises(OutputDiffers, match="not readable"):
        stored_manifest(path, {"seed": 1}, remedy="repeat that")
