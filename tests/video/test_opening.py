"""Media are opened in one place, by which names are files, and formats hold their own data."""

import ast
from pathlib import Path

import av
import pytest

from ldm.video import VideoError, probe, read
from ldm.video.opening import open_media, open_output
from tests.video.clips import frames_of, write
from tests.video.films import film

ROOT = Path(__file__).parents[2]
NAMES = ("12:30.mp4", "http:x.mp4", "file:a.mp4", "concat:a.mp4", "a%03d.mp4", "-x.mp4", "a|b.mp4", " b .mp4", "é.mp4")


def calls_of(tree):
    return [node.func for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]


def test_nothing_else_in_the_tree_opens_media():
    files = [*(ROOT / "ldm").rglob("*.py"), *(ROOT / "basicsr_deg").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    found = {
        str(file.relative_to(ROOT)): True
        for file in (*files, ROOT / "main.py")
        for call in calls_of(ast.parse(file.read_text(encoding="utf-8")))
        if call.attr == "open" and isinstance(call.value, ast.Name) and call.value.id == "av"
    }
    assert list(found) == [str(Path("ldm", "video", "opening.py"))]


def test_nothing_in_the_product_decodes_image_files_by_opencv():
    files = [*(ROOT / "ldm").rglob("*.py"), *(ROOT / "basicsr_deg").rglob("*.py")]
    found = {
        (file.name, call.attr)
        for file in files
        for call in calls_of(ast.parse(file.read_text(encoding="utf-8")))
        if call.attr in ("imread", "imdecode")
    }
    assert found <= {("compression.py", "imdecode"), ("panels.py", "imdecode")}, "which decode what they encoded"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_file_whatever_it_looks_like(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write("plain.mp4", frames_of(2))
    Path("plain.mp4").rename(name)
    for given in (name, f"./{name}", tmp_path / name):
        assert probe(given).frames == 2
    write(f"{name}.mkv", list(read(name)))
    assert probe(f"{name}.mkv").frames == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((name, f"{name}.mkv"))


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nreal.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile real.mp4\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    ],
)
def test_lists_of_other_files_are_refused(tmp_path, text):
    film(tmp_path / "real.mp4", 2)
    (tmp_path / "list.mp4").write_text(text)
    with pytest.raises(VideoError, match=r"list\.mp4: not a readable video"):
        probe(tmp_path / "list.mp4")


def test_tags_that_are_not_utf8_do_not_matter(tmp_path):
    data = film(tmp_path / "a.mkv", 3, tags={"title": "Cafe XX"}).read_bytes()
    assert b"Cafe XX" in data
    (tmp_path / "a.mkv").write_bytes(data.replace(b"Cafe XX", b"Caf\xe9 \xe9\xff"))
    assert probe(tmp_path / "a.mkv").frames == 3
    with open_media(tmp_path / "a.mkv") as container:
        assert container.metadata["title"].startswith("Caf")


def test_an_output_that_cannot_be_opened_is_an_error(tmp_path):
    with pytest.raises((av.FFmpegError, OSError)), open_output(tmp_path / "none" / "a.mp4") as container:
        container.add_stream("mpeg4", rate=25)
        container.start_encoding()


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("a.pdf", b"%PDF-1.4\n"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%touch RAN) (w) file\n"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>\n"),
        ("a.mp4", b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY y SYSTEM 'file:///etc/passwd'>]><svg>&y;</svg>\n"),
    ],
)
def test_documents_are_no_films(tmp_path, monkeypatch, name, head):
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "a.mjpeg", 2, codec="mjpeg", pix_fmt="yuvj420p")
    (tmp_path / name).write_bytes(head + (tmp_path / "a.mjpeg").read_bytes())
    with pytest.raises(VideoError, match=f"{name}: not a readable video but a document"):
        probe(tmp_path / name)
    for picture in ("b.png", "b.tif"):
        (tmp_path / picture).write_bytes(head)
        with pytest.raises(VideoError, match="not a readable image"):
            probe(tmp_path / picture)
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize(
    ("name", "brand"), [("a.mp4", b"heic"), ("a.mp4", b"mif1"), ("a.heic", b"isom"), ("a.jp2", b"")]
)
def test_pictures_of_other_formats_are_no_films(tmp_path, name, brand):
    data = film(tmp_path / "film.mp4", 2).read_bytes()
    assert data[8:12] == b"isom"
    (tmp_path / name).write_bytes(data[:8] + (brand or b"isom") + data[12:])
    with pytest.raises(VideoError, match=f"{name}: .* but a picture in a format that is not read; save it as PNG"):
        probe(tmp_path / name)
