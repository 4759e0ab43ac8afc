"""Read and write videos: video files, folders of images, and single images.

Frames are (h, w, 3) RGB or (h, w, 4) RGBA arrays, uint8, or uint16 of full scale for sources of more than 8 bits, or
clips (T, 3, H, W) float32 in [0, 1]. Errors that a user can correct are `VideoError` with a message of one line.
Outputs are atomic: they are written under a temporary name beside the target and renamed when complete.

A long video is written in parts: `choose_format` returns the format of the output, `list_omissions` lists the
properties of the source that it cannot keep, `dry_run_output` tests it with one frame, `write_part` encodes frames, and
`join` joins the parts with sound, subtitles and times of the source.
"""

from ldm.video.dry_run import dry_run_output
from ldm.video.formats import Format, choose_format
from ldm.video.joining import join
from ldm.video.omissions import list_omissions
from ldm.video.pixels import frame_tensor
from ldm.video.reading import clips_in, probe, read, read_clip, sequences
from ldm.video.sinks import png_names
from ldm.video.source import DAMAGED, DEFAULT_RATE, IMAGE_SUFFIXES, VIDEO_SUFFIXES, Color, Source, VideoError, snap_rate
from ldm.video.writing import Writer, open_writer, write_part

__all__ = [
    "DAMAGED",
    "DEFAULT_RATE",
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Color",
    "Format",
    "Source",
    "VideoError",
    "Writer",
    "choose_format",
    "clips_in",
    "frame_tensor",
    "join",
    "list_omissions",
    "open_writer",
    "png_names",
    "probe",
    "read",
    "read_clip",
    "dry_run_output",
    "sequences",
    "snap_rate",
    "write_part",
]
