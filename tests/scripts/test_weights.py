"""The command for weights: what it lists, asks, downloads, records and checks."""

import hashlib
import json

import pytest

from ldm.engine.assemble import family_cards, read_model, weight_files
from ldm.weights.files import WeightFile
from ldm.weights.origins import Origin
from scripts import weights
from tests.weights import hub as hubs

FILES = {"mgldvsr_unet.ckpt": b"unet" * 100, "video_vae_cfw.ckpt": b"vae" * 100, "raft-things.pth": b"raft"}


@pytest.fixture()
def hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with hubs.serving(FILES) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        yield served


def test_all_files_are_listed_with_licence_and_place(capsys):
    assert weights.main(["list"]) == 0
    text = capsys.readouterr().out
    entries = [entry for card in family_cards() for entry in weight_files(read_model(card)) if entry.source]
    assert len(entries) > 10 and all(f"/{entry.name} (" in text for entry in entries)
    assert text.count("licence: ") == text.count("SHA-256: ") > 10 and "SHA-256: unknown" in text
    assert "SHA-256: ff5fadd5...\n" in text and "MIT (code); not stated for the weights" in text


def test_every_source_can_be_read_and_found():
    for card in family_cards():
        for entry in weight_files(read_model(card)):
            if entry.source:
                source = Origin.of(entry)
                assert source.size and source.licence and (source.addresses() or source.page)


def test_a_family_is_downloaded_recorded_and_checked(hub, tmp_path, capsys):
    assert weights.main(["download", "mgldvsr", "--yes"]) == 0
    text = capsys.readouterr().out
    folder = tmp_path / "weights" / "mgldvsr"
    assert text.index("S-Lab License 1.0 (non-commercial)") < text.index("as the server states")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["mgldvsr_unet.ckpt", "video_vae_cfw.ckpt", "weights.json"]
    entry = json.loads((folder / "weights.json").read_text())["files"]["mgldvsr_unet.ckpt"]
    assert entry["sha256"] == hashlib.sha256(FILES["mgldvsr_unet.ckpt"]).hexdigest() and entry["commit"] == "c0ffee"
    assert weights.main(["check", "mgldvsr"]) == 0
    assert "equal to that of the first download" in capsys.readouterr().out
    (folder / "video_vae_cfw.ckpt").write_bytes(b"other")
    assert weights.main(["check", "mgldvsr"]) == 2
    assert "video_vae_cfw: 0.0 MB, SHA-256 " in (said := capsys.readouterr().out) and "differs from" in said


def test_what_is_there_is_not_fetched_again(hub, capsys):
    assert weights.main(["download", "mgldvsr", "--yes"]) == 0
    hub.asked.clear()
    assert weights.main(["download", "mgldvsr"]) == 0
    assert not hub.asked and capsys.readouterr().out.count("there already") == 2


def test_a_wrong_published_hash_is_an_error(hub, tmp_path, capsys):
    assert weights.main(["download", "mgldvsr/raft-things", "--yes"]) == 2
    assert "expected fcfa4125d6418f4d... of the entry" in capsys.readouterr().err
    assert not list((tmp_path / "weights").rglob("*.pth"))


def test_nothing_comes_without_being_asked(hub, tmp_path, capsys, monkeypatch):
    assert weights.main(["download", "mgldvsr"]) == 2
    assert "expected --yes" in capsys.readouterr().err and not hub.asked
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert weights.main(["download", "mgldvsr"]) == 2
    assert "nothing downloaded" in capsys.readouterr().out and not hub.asked
    assert not (tmp_path / "weights").exists()


def test_offline_it_names_what_to_put_where(hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert weights.main(["download", "mgldvsr", "--yes"]) == 2
    said = capsys.readouterr().err
    assert "huggingface.co/ianyeung/MGLD-VSR -> weights/mgldvsr/mgldvsr_unet" in said and not hub.asked


def test_a_second_repository_and_a_second_name_are_tried(hub, tmp_path):
    hub.files = {"unet/diffusion_pytorch_model.bin": b"u"}
    assert weights.main(["download", "stablevsr/unet", "--yes", "--folder", str(tmp_path / "w")]) == 0
    assert (tmp_path / "w" / "unet" / "diffusion_pytorch_model.bin").read_bytes() == b"u"
    hub.files = {}
    assert weights.main(["download", "mgldvsr/video_vae_cfw", "--yes"]) == 2
    repositories = [path.split("/")[1] for path, _ in hub.asked if "video_vae_cfw" in path]
    assert repositories == ["ianyeung", "Iceclear"]


def test_files_to_fetch_by_hand_are_named(hub, capsys):
    assert weights.main(["download", "upscale_a_video/unet_video"]) == 2
    said = capsys.readouterr().out
    assert "by hand from https://github.com/sczhou/Upscale-A-Video" in said and not hub.asked


def test_a_changed_file_is_reported_at_the_second_download(hub, tmp_path, capsys):
    assert weights.main(["download", "mgldvsr/video_vae_cfw", "--yes"]) == 0
    (tmp_path / "weights" / "mgldvsr" / "video_vae_cfw.ckpt").unlink()
    hub.files["video_vae_cfw.ckpt"] = b"another"
    assert weights.main(["download", "mgldvsr/video_vae_cfw", "--yes"]) == 0
    assert "differs from the file of the first download" in capsys.readouterr().out
    assert weights.main(["check", "mgldvsr/video_vae_cfw"]) == 2


def test_an_unknown_name_and_a_foreign_record_are_one_line(hub, tmp_path, capsys):
    assert weights.main(["download", "nothing"]) == 2
    assert "expected one of mgldvsr, " in capsys.readouterr().err
    (tmp_path / "weights.json").write_text("[]")
    assert weights.main(["check", "mgldvsr", "--folder", str(tmp_path)]) == 2
    assert "not a record of weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"hub": ["a/b"]}, "expected OWNER/NAME"),
        ({"hub": ["a/b/c"], "paths": ["x.pth"]}, "expected OWNER/NAME"),
        ({"hub": ["a/b"], "paths": ["../x.pth"]}, "inside the repository"),
        ({"url": "http://example.org/x.pth"}, "https://"),
        ({"sha256": "xyz"}, "hexadecimal"),
        ({"bytes": -1}, "number of bytes"),
        ({"hub": "a/b", "paths": ["x"]}, "a list of words"),
        ({"mirror": "a/b"}, "expected some of"),
    ],
)
def test_a_bad_source_is_named(source, message):
    entry = WeightFile.from_config("x", {"files": ["x"], "fills": {"flow": ""}, "source": source})
    with pytest.raises(ValueError, match=message):
        Origin.of(entry)
