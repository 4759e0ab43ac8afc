"""What frames are read from: folders of pictures and video files. A frame is (h, w, 3) uint8 RGB."""

import re
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
FILMS = {".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv", ".flv", ".y4m"}
HIGH_DEFINITION = 720  # lines
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # of a stream -> of FFmpeg's scaler; 1 BT.709, 5 BT.601
ENDS = {b"\x89PNG": b"IEND\xaeB`\x82", b"\xff\xd8\xff": b"\xff\xd9"}  # how files that start so must end


def in_counting_order(path: Path) -> list:
    """Sort key by which 2.png comes before 10.png."""
    return [int(part) if part.isdigit() else part.casefold() for part in re.split(r"(\d+)", path.name)]


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, in counting order, without hidden files."""
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=in_counting_order)


def read_picture(path: Path) -> np.ndarray:
    """A picture file as (h, w, 3) uint8 RGB; ValueError names one that is unreadable or cut short."""
    data = Path(path).read_bytes()
    end = next((end for start, end in ENDS.items() if data.startswith(start)), b"")
    whole = end in data[-4096:]  # OpenCV fills up what is missing without a word
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data and whole else None
    if picture is None:
        raise ValueError(f"{path}: not a readable picture, or cut short; replace or remove it")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


class PictureSequence:
    """A clip whose frames are picture files, in the order given."""

    def __init__(self, name: str, files: Sequence[Path]):
        self.name, self.files = name, list(files)

    def __len__(self) -> int:
        return len(self.files)

    def exact_length(self) -> int:
        """How many frames can be read."""
        return len(self.files)

    def frames(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """The frames of these numbers."""
        return [read_picture(self.files[number]) for number in numbers]


class FilmSequence:
    """A clip that is a video file; only what is needed of it is decoded, upright as players show it."""

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        self._count: int | None = None
        self._times: list[int] | None = None

    def __len__(self) -> int:
        """What the container says, which may be a few too many; the packets counted where it says nothing."""
        if self._count is None:
            with self._open() as container:
                self._count = container.streams.video[0].frames
            self._count = self._count or self.exact_length()
        return self._count

    def exact_length(self) -> int:
        """How many frames can be read: the packets that are shown, counted once."""
        self._presented()
        return self._count

    def frames(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """The frames of these numbers; ValueError names a file that has fewer, or breaks off."""
        times = self._presented()
        found = {}
        if len(set(times)) == len(times) > max(numbers):  # every frame is known by its time: start at a key frame
            found = self._decode({times[number]: number for number in numbers}, seek=times[min(numbers)])
        if len(found) < len(set(numbers)):
            found = self._decode({number: number for number in numbers}, seek=None)
        if missing := sorted(set(numbers) - set(found)):
            raise ValueError(f"{self.path}: frame {missing[0]} cannot be read, expected {len(self)}; remove this video")
        return [found[number] for number in numbers]

    def _decode(self, wanted: dict[int, int], *, seek: int | None) -> dict[int, np.ndarray]:
        """{frame number: frame}, `wanted` by time after a seek, by number from the start."""
        found = {}
        with self._open() as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # data loaders have a process for each core already
            try:
                if seek is not None:
                    container.seek(seek, stream=stream)
                for count, frame in enumerate(container.decode(stream)):
                    key = count if seek is None else frame.pts
                    if key in wanted:
                        found[wanted[key]] = _upright(frame)
                    if len(found) == len(wanted):
                        break
            except av.FFmpegError as error:
                if seek is None:
                    raise ValueError(f"{self.path}: breaks off while it is read ({error.strerror})") from None
        return found

    def _presented(self) -> list[int]:
        """The times of all frames in the order they are shown, empty where packets have none; found once."""
        if self._times is None:
            with self._open() as container:
                packets = [p for p in container.demux(video=0) if p.size and not p.is_discard]
            times = [packet.pts for packet in packets]
            self._count, self._times = len(times), [] if None in times else sorted(times)
        return self._times

    def _open(self) -> av.container.InputContainer:
        try:
            container = av.open(str(self.path))
        except (av.FFmpegError, OSError) as error:
            raise ValueError(f"{self.path}: not a readable video ({error.strerror}); replace or remove it") from None
        if not container.streams.video:
            container.close()
            raise ValueError(f"{self.path}: holds no video stream; replace or remove it")
        return container


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """A decoded frame as RGB, turned by the container's rotation (a multiple of 90 degrees, anticlockwise)."""
    guess = 1 if frame.height >= HIGH_DEFINITION else 5  # as players do where a video does not name its matrix
    rgb = frame.to_ndarray(format="rgb24", src_colorspace=MATRICES.get(frame.colorspace, guess))
    return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)))
