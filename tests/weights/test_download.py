"""Downloads from a server that redirects, breaks connections, lies, and changes its files."""

import hashlib
import json

import pytest

from ldm.weights.download import DownloadError, NotFound, fetch
from tests.weights import hub as hubs

DATA = bytes(range(256)) * 400
HASH = hashlib.sha256(DATA).hexdigest()


@pytest.fixture()
def hub():
    with hubs.serving({"unet.ckpt": DATA}) as served:
        yield served


def url(hub, path="unet.ckpt"):
    return f"{hub.address}/owner/name/resolve/main/{path}"


def get(hub, folder, **options):
    waits = []
    return fetch(url(hub), folder / "sub" / "unet.ckpt", wait=waits.append, **options), waits


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_comes_through_a_redirect_with_its_hash_and_commit(hub, tmp_path):
    seen = []
    done, waits = get(hub, tmp_path, report=lambda *counts: seen.append(counts))
    assert (tmp_path / "sub" / "unet.ckpt").read_bytes() == DATA and files_in(tmp_path) == ["unet.ckpt"]
    assert (done.sha256, done.stated, done.commit, done.size) == (HASH, HASH, "c0ffee", len(DATA)) and not waits
    assert seen[0][0] == 0 and seen[-1][0] == len(DATA)


def test_a_cut_connection_is_resumed_where_it_broke(hub, tmp_path):
    hub.cuts = [1000, 5000]
    done, waits = get(hub, tmp_path)
    assert done.sha256 == HASH and len(waits) == 2
    assert [asked for path, asked in hub.asked if path.startswith("/cdn/")] == [None, "bytes=1000-", "bytes=6000-"]


def test_a_later_command_resumes(hub, tmp_path):
    hub.cuts = [1000, *[0] * 9]
    with pytest.raises(DownloadError, match="run the same command again"):
        get(hub, tmp_path)
    assert files_in(tmp_path) == ["unet.ckpt.part", "unet.ckpt.part.json"]
    hub.cuts.clear()
    hub.asked.clear()
    assert get(hub, tmp_path)[0].sha256 == HASH
    assert ("/cdn/unet.ckpt", "bytes=1000-") in hub.asked and files_in(tmp_path) == ["unet.ckpt"]


@pytest.mark.parametrize("careless", [False, True])
def test_a_file_that_changed_meanwhile_is_fetched_from_its_beginning(hub, tmp_path, careless):
    hub.careless, hub.linked = careless, False
    hub.cuts = [1000, *[0] * 9]
    with pytest.raises(DownloadError):
        get(hub, tmp_path)
    hub.cuts.clear()
    hub.files["unet.ckpt"] = DATA[::-1]
    assert get(hub, tmp_path)[0].sha256 == hashlib.sha256(DATA[::-1]).hexdigest()


def test_a_server_without_ranges_begins_again(hub, tmp_path):
    hub.ranges, hub.cuts = False, [1000]
    assert get(hub, tmp_path)[0].sha256 == HASH
    assert {asked for _, asked in hub.asked} == {None}


def test_a_server_without_lengths_is_bounded_by_the_entry(hub, tmp_path):
    hub.sized = False
    assert get(hub, tmp_path, size=len(DATA))[0].sha256 == HASH
    with pytest.raises(DownloadError, match="more than the 15000 bytes"):
        fetch(url(hub), tmp_path / "other.ckpt", size=10_000)


@pytest.mark.parametrize("options", [{"sha256": "0" * 64}, {"sha256": "01234567"}])
def test_a_wrong_hash_leaves_nothing(hub, tmp_path, options):
    with pytest.raises(DownloadError, match=r"got SHA-256 \w+\.\.\., expected 0"):
        get(hub, tmp_path, **options)
    assert files_in(tmp_path) == []


def test_the_hash_that_the_hub_states_is_compared(hub, tmp_path):
    hub.lie = "1" * 64
    with pytest.raises(DownloadError, match=r"expected 1111111111111111\.\.\. of the Hub"):
        get(hub, tmp_path, sha256=HASH)
    hub.lie, hub.linked = "", False
    assert get(hub, tmp_path, sha256=HASH[:8])[0].stated == ""


def test_a_missing_or_closed_file_is_named(hub, tmp_path):
    with pytest.raises(NotFound, match="no such file"):
        fetch(url(hub, "vae.ckpt"), tmp_path / "vae.ckpt")
    hub.statuses = [403]
    with pytest.raises(DownloadError, match="accept the licence there"):
        get(hub, tmp_path)
    assert files_in(tmp_path) == []


def test_a_busy_server_is_asked_again(hub, tmp_path):
    hub.statuses = [503, 429]
    done, waits = get(hub, tmp_path)
    assert done.sha256 == HASH and waits == [2, 4]


def test_a_file_far_larger_than_its_entry_is_refused(hub, tmp_path):
    with pytest.raises(DownloadError, match="expected at most 150"):
        get(hub, tmp_path, size=100)
    assert files_in(tmp_path) == []


def test_a_redirect_to_another_protocol_is_refused(hub, tmp_path):
    hub.to = f"file://{tmp_path}/secret"
    with pytest.raises((DownloadError, OSError)):
        get(hub, tmp_path)
    hub.to = "ftp://127.0.0.1/x"
    with pytest.raises(DownloadError, match="got a redirect to ftp"):
        get(hub, tmp_path)
    assert files_in(tmp_path) == []


def test_a_link_in_the_way_is_not_followed(hub, tmp_path):
    (tmp_path / "sub").mkdir()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "sub" / "unet.ckpt.part").symlink_to(precious)
    with pytest.raises(OSError):
        get(hub, tmp_path)
    assert precious.read_text() == "mine"


def test_a_damaged_note_is_not_trusted(hub, tmp_path):
    folder = tmp_path / "sub"
    folder.mkdir()
    (folder / "unet.ckpt.part").write_bytes(b"x" * 500)
    for note in ("{", "[]", json.dumps({"url": url(hub), "etag": 3, "size": None}), json.dumps({"url": url(hub)})):
        (folder / "unet.ckpt.part.json").write_text(note)
        assert get(hub, tmp_path)[0].sha256 == HASH
        (folder / "unet.ckpt").rename(folder / "unet.ckpt.part")
