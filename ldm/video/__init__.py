"""Reading and writing moving pictures: video files, folders of images, single images; RGB, 8 bit at the border.

Frames come as (h, w, 3) uint8 RGB or (T, 3, H, W) float32 in [0, 1], and go out as either. Every failure a person can
cause is a `VideoError` of one line. Outputs are written under a temporary name beside the target and renamed when
whole, so that a path that exists is always complete.
"""

from ldm.video.reading import clips_in, probe, read, read_clip, sequences
from ldm.video.source import DEFAULT_RATE, IMAGE_SUFFIXES, VIDEO_SUFFIXES, Source, VideoError, snap_rate
from ldm.video.writing import Writer, open_writer

__all__ = [
    "DEFAULT_RATE",
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Source",
    "VideoError",
    "Writer",
    "clips_in",
    "open_writer",
    "probe",
    "read",
    "read_clip",
    "sequences",
    "snap_rate",
]
