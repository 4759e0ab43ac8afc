"""Open media files; every name is taken as a file, never as an address. No other module opens media.

FFmpeg takes names such as `http:x.mp4` or `concat:a|b` for addresses, and formats such as HLS open the files that they
list. Here every name is given as `file:NAME`; only that protocol, and formats that hold their own data, are allowed.
"""

from pathlib import Path
from typing import BinaryIO

import av

from ldm.video.source import VideoError

# FFmpeg's demuxers of files that hold moving pictures themselves. Left out are play lists (hls, dash, concat), devices,
# text and image sequences, which name other files.
READABLE = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,asf_o,flv,live_flv,kux,mpegts,mpeg,mpegvideo,ogg,mxf,gxf,dv,nut,nsv,"
    "rm,wtv,ivf,obu,av1,h264,hevc,vvc,h263,h261,m4v,vc1,vc1test,dirac,cavsvideo,avs2,avs3,mjpeg,yuv4mpegpipe,gif,apng,"
    "amv,nuv,pva,ty,swf,flic,roq,smk,bink,film_cpk,rpl,dxa,dhav,ipmovie,lmlm4,mtv,mpjpeg,mjpeg_2000"
)

HEIF = (b"heic", b"heix", b"heim", b"heis", b"mif1")  # brands of still pictures
OTHER_PICTURES = tuple(".heic .heif .jp2 .j2k .jxl .tga .ico .pcx .exr .hdr .psd .dng .cr2 .cr3 .nef .arw".split())


def refuse_documents(path: str | Path) -> None:
    """Raise VideoError for documents and pictures of other formats, in which FFmpeg may see a film.

    In a PDF it finds a JPEG, and of a photograph in HEIF one of its tiles.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(256)
    except (OSError, ValueError):  # told when it is opened as media
        return
    if head.lstrip().lower().startswith((b"%pdf", b"%!ps", b"<?xml", b"<svg")):
        raise VideoError(f"{path}: not a readable video but a document; save its pages as PNG first")
    if (head[4:8] == b"ftyp" and head[8:12] in HEIF) or Path(path).suffix.lower() in OTHER_PICTURES:
        raise VideoError(f"{path}: not a readable video but a picture in a format that is not read; save it as PNG")


def open_media(file: str | Path | BinaryIO) -> av.container.InputContainer:
    """Open a file, by its path or as an object, for reading; tags that are not UTF-8 get replacement characters.

    Raises av.FFmpegError, OSError or ValueError: not there, or not in a format of `READABLE`.
    """
    options = {"format_whitelist": READABLE, "protocol_whitelist": "file"}
    if not isinstance(file, (str, Path)):
        return av.open(file, options=options, metadata_errors="replace")
    return av.open(_address(file), container_options=options, metadata_errors="replace")


def open_output(
    file: str | Path | BinaryIO, format: str | None = None, options: dict | None = None
) -> av.container.OutputContainer:
    """Open a file, by its path or as an object, for writing; `format` is FFmpeg's name (default: that of the suffix).

    Raises av.FFmpegError, OSError or ValueError.
    """
    named = isinstance(file, (str, Path))
    return av.open(_address(file) if named else file, "w", format=format, container_options=options or {})


def _address(path):
    return f"file:{path}"
