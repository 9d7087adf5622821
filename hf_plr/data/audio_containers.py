"""Containers of sound that libsndfile does not open, such as M4A: their names, and a decoder by PyAV."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

HEAD_BYTES = 64  # of a file, enough to recognise it
INSTALL = "pip install av"
NAMES = {
    ".m4a": "M4A",
    ".m4b": "M4B",
    ".mp4": "MP4",
    ".mov": "MOV",
    ".3gp": "3GP",
    ".3g2": "3GP",
    ".aac": "AAC",
    ".adts": "AAC",
    ".wma": "WMA",
    ".asf": "WMA",
    ".amr": "AMR",
    ".awb": "AMR",
    ".webm": "WebM",
    ".mka": "Matroska",
    ".mkv": "Matroska",
    ".ape": "APE",
    ".wv": "WavPack",
    ".tta": "TTA",
    ".ac3": "AC3",
}
CONTAINER_SUFFIXES = tuple(NAMES)
DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,aac,asf,amr,matroska,webm,ape,wv,tta,ac3"  # no playlists: they open other files
BRANDS = {b"M4A ": "M4A", b"M4B ": "M4B", b"qt  ": "MOV", b"3gp": "3GP", b"3g2": "3GP"}
MAGIC = {
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "WMA",
    b"#!AMR": "AMR",
    b"MAC ": "APE",
    b"wvpk": "WavPack",
    b"TTA1": "TTA",
    b"\x0b\x77": "AC3",
}


def name_container(head: bytes, suffix: str) -> str | None:
    """Name the container of a file that libsndfile does not open, such as "M4A"; None if it is not a known one.

    Args:
        head: the first 64 bytes of the file; empty for an empty file, which is no container.
        suffix: ending of its name, such as ".m4a", in any case; it decides where the bytes do not.
    """
    if not head:
        return None
    by_suffix = NAMES.get(suffix.lower())
    if head[4:8] == b"ftyp":  # MP4 and its relatives share brands: the name of the file knows better
        brands = (name for brand, name in BRANDS.items() if head[8:12].startswith(brand))
        return by_suffix or next(brands, "MP4")
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "WebM" if b"webm" in head else "Matroska"
    if head[0] == 0xFF and len(head) > 1 and head[1] & 0xF6 == 0xF0:
        return "AAC"
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), by_suffix)


def has_decoder() -> bool:
    """True if PyAV is installed, which decodes the containers."""
    return importlib.util.find_spec("av") is not None


def describe_unreadable(head: bytes, suffix: str) -> str | None:
    """Describe what a file of sound needs to be read, such as "M4A needs av (pip install av)".

    Args:
        head: the first 64 bytes of the file.
        suffix: ending of its name, such as ".m4a", in any case.

    Returns:
        None for a file that needs nothing: libsndfile may open it, it is of no known kind, or PyAV is installed.
    """
    name = name_container(head, suffix)
    return None if name is None or has_decoder() else f"{name} needs av ({INSTALL})"


class ContainerReader:
    """Reader of the first stream of sound in a container, from its beginning to its end.

    Args:
        container: an open `av.container.InputContainer`.

    Attributes:
        rate: frames per second (Hz).
        frames: None: what headers tell is not exact.
        can_seek: False: after a jump, lossy decoders give other samples than from the beginning.

    Raises:
        ValueError: if there is no sound in it.
    """

    can_seek = False
    frames: int | None = None

    def __init__(self, container: Any):
        if not container.streams.audio:
            raise ValueError("it holds no sound")
        self.rate = 0
        self._blocks = self._decode(container)
        self._rest = next(self._blocks, np.empty(0, np.float32))

    def read(self, frames: int | None) -> np.ndarray:
        """Read the next frames, all of them for None, and average their channels; float32 (T,), fewer at the end."""
        parts, missing = [], frames
        while missing is None or missing > 0:
            part = self._rest[:missing]
            self._rest = self._rest[len(part) :]
            parts.append(part)
            missing = None if missing is None else missing - len(part)
            if not len(self._rest):
                following = next(self._blocks, None)
                if following is None:
                    break
                self._rest = following
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def seek(self, frame: int) -> None:
        """Refuse to jump."""
        raise ValueError("a container is read from its beginning")

    def _decode(self, container: Any) -> Iterator[np.ndarray]:
        import av

        resampler = None
        for frame in container.decode(audio=0):
            if resampler is None:
                self.rate = int(frame.sample_rate)  # that of the header is half of it for some AAC
                resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=self.rate)
            for part in resampler.resample(frame):
                yield part.to_ndarray().mean(axis=0, dtype=np.float32)


@contextlib.contextmanager
def open_container(source: bytes | str | os.PathLike[str]) -> Iterator[ContainerReader]:
    """Open bytes or a file by PyAV.

    Raises:
        ValueError: if it cannot be decoded, now or while it is read.
    """
    import av

    try:
        with (
            io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file,
            av.open(file, options={"format_whitelist": DEMUXERS}) as container,
        ):
            yield ContainerReader(container)
    except av.error.FFmpegError as error:
        raise ValueError(error.strerror or str(error)) from error
