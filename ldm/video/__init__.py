"""Reading and writing moving pictures: video files, folders of images, single images.

Frames come as (h, w, 3) RGB or (h, w, 4) RGBA, uint8 or (where the source is deeper than 8 bits) uint16 of full scale,
or as a clip (T, 3, H, W) float32 in [0, 1]; they go out as either. Every failure a person can cause is a `VideoError`
of one line. Outputs are written under a temporary name beside the target and renamed when whole, so that a path that
exists is always complete.

A long video is written part by part: `choose_format` says what the output is and `losses` what it cannot keep of the
source, `rehearse_output` tries all of it for a moment, `write_part` encodes some frames, and `join` puts the parts
together with sound, subtitles and times.
"""

from ldm.video.formats import Format, choose_format
from ldm.video.joining import join
from ldm.video.omissions import losses
from ldm.video.pixels import frame_tensor
from ldm.video.reading import clips_in, probe, read, read_clip, sequences
from ldm.video.rehearsal import rehearse_output
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
    "losses",
    "open_writer",
    "png_names",
    "probe",
    "read",
    "read_clip",
    "rehearse_output",
    "sequences",
    "snap_rate",
    "write_part",
]
