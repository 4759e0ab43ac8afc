"""Findings of doctor.py: on this machine, for invalid weights and data sets, and for missing packages."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ldm.weights import checkpoint
from scripts import doctor, doctor_files
from tests.scripts import toy

ROOT = Path(__file__).parents[2]
OK, WARN, FAIL = "OK", "WARN", "FAIL"


def args(**given):
    return Namespace(**({"weights": [], "data": [], "output": Path("results"), "device": "cpu", "json": False} | given))


def found(check, **given):
    return [(finding.status, finding.what, finding.text) for finding in check(args(**given))]


@pytest.fixture
def importable_packages(monkeypatch):
    """Replace the slow imports in another process by success."""
    monkeypatch.setattr(doctor, "import_errors", lambda modules: dict.fromkeys(modules, ""))


def test_this_machine_passes(importable_packages, tmp_path, capsys):
    clip = toy.make_clip(tmp_path / "set" / "000", 3)
    assert doctor.main(["--data", str(clip.parent), "--device", "cpu", "-o", str(tmp_path / "new" / "results")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(re.match(r"(OK  |WARN|FAIL)  \S.*: \S", line) for line in lines[:-1])
    assert re.fullmatch(r"\d+ OK, \d+ WARN, 0 FAIL", lines[-1])
    whole = "\n".join(lines)
    for name in (
        "python",
        "torch",
        "encoder libx264",
        "encoder libx265",
        "encoder ffv1",
        "encoder prores_ks",
        "memory of cpu",
    ):
        assert re.search(rf"^OK    {name}: ", whole, re.M), name
    assert "folders, 1 of 1 clips taken, 3 frames each" in whole and "all files of the model are present" in whole


def test_every_warning_and_failure_has_a_remedy(importable_packages, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    bad = ["--weights", str(tmp_path / "empty"), str(tmp_path / "none"), "--data", str(tmp_path / "empty"), "--json"]
    assert doctor.main(bad) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert all(finding["fix"] for finding in report["findings"] if finding["status"] != OK)
    assert [f["what"] for f in report["findings"] if f["status"] == FAIL] == [
        "weights",
        "weights",
        f"data {tmp_path / 'empty'}",
    ]


def test_required_packages_are_those_of_the_project():
    listed = re.search(r"^dependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M)[1]
    assert set(re.findall(r'"([\w-]+)', listed)) == set(doctor.REQUIRED)


def test_a_package_that_breaks_python_is_named(tmp_path, monkeypatch):
    (tmp_path / "dies_here.py").write_text("import os; os._exit(7)")
    (tmp_path / "raises_here.py").write_text("raise RuntimeError('no such symbol\\nand more')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    why = doctor.import_errors(["json", "dies_here", "raises_here", "not_there_at_all"])
    assert why["json"] == "" and why["dies_here"] == "ends Python with status 7"
    assert why["raises_here"] == "no such symbol" and "No module named" in why["not_there_at_all"]


def test_missing_and_broken_packages_fail(monkeypatch):
    monkeypatch.setattr(
        doctor, "import_errors", lambda modules: dict.fromkeys(modules, "") | {"av": "no av", "rich": "broken"}
    )
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "av" else "1.0")
    lines = {finding.what: finding for finding in doctor.check_packages(args())}
    assert lines["av"][:3] == (FAIL, "av", "not installed") and lines["av"].fix.endswith("-c constraints.txt av")
    assert lines["rich"].status == FAIL and "does not import: broken" in lines["rich"].text
    assert lines["torch"] == (OK, "torch", "1.0", "")


def test_a_torchvision_that_does_not_import_fails(monkeypatch):
    monkeypatch.setattr(
        doctor, "import_errors", lambda modules: dict.fromkeys(modules, "") | {"torchvision": "undefined symbol"}
    )
    monkeypatch.setattr(doctor, "version_of", lambda name: "0.1" if name == "torchvision" else None)
    last = list(doctor.check_optional(args()))[-1]
    assert last.status == FAIL and last.fix.endswith("pip uninstall torchvision")


def test_packages_of_measures_are_those_of_the_document(monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda name: None)
    page = (ROOT / "docs" / "METRICS.md").read_text(encoding="utf-8")
    fixes = {finding.what: finding.fix for finding in doctor.check_optional(args())}
    for name in ("lpips", "DISTS-pytorch", "pyiqa"):
        assert f"`{fixes[name][fixes[name].index('pip ') :]}`" in page, name
    assert fixes["brisque"] == fixes["lpips"] != fixes["pyiqa"]


def test_constraints_are_read_for_a_version_of_python():
    text = (ROOT / "constraints.txt").read_text()
    new, old = (doctor.tested_versions(text, version) for version in ((3, 11), (3, 10)))
    assert new["torch"] == old["torch"] == "2.13.0" and new["numpy"] != old["numpy"] and set(new) == set(old)
    names = {line.split("==")[0] for line in text.splitlines() if line and not line.startswith("#")}
    assert set(new) == names


def test_other_versions_are_named(monkeypatch):
    monkeypatch.setattr(doctor, "tested_versions", lambda text, python: {"torch": "9.9", "numpy": np.__version__})
    lines = list(doctor.check_versions(args()))
    assert [line.status for line in lines] == [WARN, OK]
    assert lines[0].what == "version of torch" and lines[0].fix.endswith("torch==9.9")


def test_low_memory_and_disk_space_are_reported(monkeypatch):
    for free, status in ((0.5e9, FAIL), (2e9, WARN), (8e9, OK)):
        monkeypatch.setattr("ldm.engine.device.free_memory", lambda place, free=free: int(free))
        assert [s for s, what, _ in found(doctor.check_device) if what == "memory of cpu"] == [status]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Namespace(free=2 * 10**9))
    assert {status for status, *_ in found(doctor.check_disk)} == {WARN}


def test_a_missing_device_fails():
    assert [status for status, what, _ in found(doctor.check_device, device="cuda:77") if what == "device"] == [FAIL]


def test_an_output_that_cannot_be_written_fails(tmp_path):
    (tmp_path / "file").write_text("")
    status, what, text = found(doctor.check_disk, output=tmp_path / "file" / "results")[0]
    assert (status, what) == (FAIL, "disk for results") and "cannot be written to" in text


def test_a_missing_encoder_fails(monkeypatch):
    monkeypatch.setitem(doctor.ENCODERS, "libnothing", "a test")
    monkeypatch.setattr(doctor, "DECODERS", ("h264", "libnothing"))
    lines = {what: (status, text) for status, what, text in found(doctor.check_codecs)}
    assert lines["encoder libnothing"] == (FAIL, "not in this FFmpeg") and lines["encoder ffv1"][0] == OK
    assert lines["decoders"] == (WARN, "without libnothing")


def test_good_weights_pass(tmp_path):
    folder = toy.make_model(tmp_path / "model")
    lines = found(doctor.check_weights, weights=[folder])
    assert [status for status, *_ in lines] == [OK] * 3
    assert "looks like mgldvsr_unet.ckpt" in lines[0][2] and "all files of the model are present" in lines[2][2]


def test_bad_weights_are_named(tmp_path):
    folder = toy.make_model(tmp_path / "model")
    two = folder / "video_vae_cfw.safetensors"
    shutil.copy(folder / "mgldvsr_unet.safetensors", folder / "raft-things.safetensors")
    two.write_bytes(two.read_bytes()[:1000])
    (folder / "v2-1_512-ema-pruned.ckpt").write_text("version https://git-lfs.github.com/spec/v1")
    lines = {
        Path(what.split()[-1]).name: (status, text)
        for status, what, text in found(doctor.check_weights, weights=[folder])
    }
    assert lines["mgldvsr_unet.safetensors"][0] == OK
    assert lines["video_vae_cfw.safetensors"][0] == FAIL and "damaged" in lines["video_vae_cfw.safetensors"][1]
    assert (
        lines["raft-things.safetensors"][0] == FAIL
        and "belongs into mgldvsr_unet" in lines["raft-things.safetensors"][1]
    )
    assert lines["v2-1_512-ema-pruned.ckpt"][0] == FAIL and "LFS" in lines["v2-1_512-ema-pruned.ckpt"][1]
    assert len(lines) == 4, "both stages exist, but are not used"
    assert not any(str(tmp_path) in text for _, text in lines.values()), "a path is printed once"


def test_a_missing_stage_fails(tmp_path):
    folder = toy.make_model(tmp_path / "model")
    (folder / "video_vae_cfw.safetensors").unlink()
    assert found(doctor.check_weights, weights=[folder])[-1][0] == FAIL


def test_hashes_are_compared(tmp_path):
    file = tmp_path / "raft-things.safetensors"
    checkpoint.save(file, {"fnet.a": torch.ones(1), "cnet.a": torch.ones(1), "update_block.a": torch.ones(1)})
    assert doctor_files.weight_finding(file, None).status == OK
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert doctor_files.weight_finding(file, digest).text.endswith(f"SHA-256 {digest[:16]} as noted")
    assert doctor_files.weight_finding(file, "0" * 64).status == FAIL
    named = tmp_path / f"raft-{digest[:8]}.safetensors"
    file.rename(named)
    assert doctor_files.weight_finding(named, None).text.endswith("as published")
    wrong = named.rename(tmp_path / "raft-00000000.safetensors")
    assert doctor_files.weight_finding(wrong, None).status == FAIL


def test_the_hashes_of_the_embedded_model_are_noted():
    noted = doctor_files.noted_hashes(ROOT / "assets" / "tiny")
    for name in ("mgldvsr_unet.safetensors", "video_vae_cfw.safetensors"):
        assert noted[name] == checkpoint.sha256(ROOT / "assets" / "tiny" / name)


def make_set(root, clips=("000", "001"), frames=5):
    for clip in clips:
        (root / clip).mkdir(parents=True)
        for number in range(frames):
            cv2.imwrite(str(root / clip / f"{number:08d}.png"), np.full((8, 12, 3), 9 * number, np.uint8))
    return root


def test_faulty_clips_are_named(tmp_path):
    root = make_set(tmp_path / "set", ("000", "001", "002", "003"))
    (root / "001" / "00000002.png").unlink()
    last = root / "002" / "00000004.png"
    last.write_bytes(last.read_bytes()[:-20])
    cv2.imwrite(str(root / "003" / "00000004.png"), np.zeros((8, 10, 3), np.uint8))
    lines = found(doctor.check_data, data=[root])
    assert [status for status, *_ in lines] == [FAIL] * 3
    assert lines[0][2].startswith("001: frame 00000002.png is missing") and "cut short" in lines[1][2]
    assert lines[2][2] == "003: frames of 12x8 and 10x8, expected one size"


def test_frames_at_a_constant_distance_are_complete(tmp_path):
    root = make_set(tmp_path / "set", ("000",), 9)
    for number in (1, 2, 4, 5, 7):
        (root / "000" / f"{number:08d}.png").unlink()
    assert found(doctor.check_data, data=[root])[0][0] == OK


def test_a_folder_without_clips_fails(tmp_path):
    assert found(doctor.check_data, data=[tmp_path / "none"])[0][0] == FAIL


def test_a_failing_check_is_a_finding(monkeypatch):
    def broken(args):
        raise KeyError("x")
        yield

    def unimportable(args):
        raise ImportError("No module named 'torch'")
        yield

    monkeypatch.setattr(doctor, "CHECKS", {"one": broken, "two": unimportable})
    lines = list(doctor.findings(args()))
    assert [(line.status, line.what) for line in lines] == [(FAIL, "one"), (WARN, "two")]
    assert "KeyError" in lines[0].text


def test_it_starts_without_packages(tmp_path):
    """It must run in a broken installation: imports at the top are of the standard library alone."""
    code = "import sys; sys.path.insert(0, '.'); import scripts.doctor; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "av", "rich", "omegaconf"} & set(run.stdout.split())


def test_unknown_arguments_are_one_line(capsys):
    assert doctor.main(["--nonsense"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
