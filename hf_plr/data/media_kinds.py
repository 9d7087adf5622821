"""What a file holds: an image, a recording, something of the kind that cannot be read, or neither."""

from __future__ import annotations

import functools
import os
from typing import Literal, NamedTuple

import soundfile
from PIL import Image as PILImage

from hf_plr.data.audio_containers import CONTAINER_SUFFIXES, describe_unreadable, name_container
from hf_plr.data.image_decoding import NEEDS_PILLOW_HEIF, has_heic

Kind = Literal["image", "audio", "video"]
ANY_HEAD = b"\0" * 16  # tells nothing of a file
HEAD_BYTES = 132  # as far as the signature of DICOM

# Pillow knows these endings, but they seldom hold an image, or only some other program could read it.
NOT_IMAGES = {".pdf", ".ps", ".eps", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".emf", ".fit", ".fits"}
CAMERA_RAW = "camera raw files are not read: convert them to TIFF or JPEG"
SCIENTIFIC = "this format is not read: convert it to TIFF or PNG"
BAD_NAME = "names that are not UTF-8: rename these files"
VIDEO = "videos are not read: extract images or sound first"
HEIC_SUFFIXES = (".heic", ".heif", ".hif")
UNREADABLE_IMAGES = {
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw"), CAMERA_RAW),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM is not read: convert it to TIFF or PNG"),
    **dict.fromkeys((".czi", ".nd2", ".lif", ".svs", ".mrxs", ".ndpi", ".exr", ".hdr", ".jxl"), SCIENTIFIC),
    ".svg": "SVG is not read: draw it as PNG",
}
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".mpg", ".mpeg", ".wmv", ".flv", ".mts", ".m2ts")
# Endings that are common beside images and recordings; their files are not opened to see what they are.
OTHER = (
    *(".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html", ".htm", ".py", ".ipynb"),
    *(".log", ".ini", ".cfg", ".toml", ".parquet", ".arrow", ".feather", ".pkl", ".npy", ".npz", ".pt", ".pth"),
    *(".safetensors", ".h5", ".hdf5", ".db", ".sqlite", ".lock", ".pdf", ".docx", ".xlsx", ".phn", ".wrd", ".textgrid"),
)
SOUND_CONTAINERS = ("WMA", "AMR", "APE", "WavPack", "TTA")  # that their first bytes tell for certain
SIGNATURES: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"\xff\xd8\xff", "image"),
    (0, b"\x89PNG\r\n\x1a\n", "image"),
    (0, b"GIF87a", "image"),
    (0, b"GIF89a", "image"),
    (0, b"II*\x00", "image"),
    (0, b"MM\x00*", "image"),
    (0, b"\x00\x00\x00\x0cjP  ", "image"),
    (8, b"WEBP", "image"),
    (128, b"DICM", "image"),
    (8, b"WAVE", "audio"),
    (8, b"AIFF", "audio"),
    (0, b"fLaC", "audio"),
    (0, b"OggS", "audio"),
    (0, b"ID3", "audio"),
)


class Media(NamedTuple):
    """What a file holds.

    Attributes:
        kind: "image", "audio" or "video".
        problem: why it cannot be read, in words; None if it can, as far as its name and first bytes tell.
    """

    kind: Kind
    problem: str | None = None


def identify(path: str) -> Media | None:
    """Tell what a file holds by the ending of its name, or by its first bytes if that says nothing; None for neither.

    Args:
        path: a file of this machine.
    """
    media = _identify_readable(path)
    return media if media is None or is_utf8(path) else Media(media.kind, BAD_NAME)


def _identify_readable(path: str) -> Media | None:
    stem, suffix = os.path.splitext(path.lower())
    packed = identify_name(os.path.splitext(stem)[1]) if suffix in (".gz", ".bz2", ".xz") else None
    if packed is not None:
        return Media(packed.kind, f"{suffix} files are not read: unpack them")
    by_name = identify_name(suffix)
    if by_name is not None or suffix in OTHER:
        return by_name
    try:
        with open(path, "rb") as file:
            return identify_head(file.read(HEAD_BYTES))
    except OSError:
        return None


def is_utf8(path: str) -> bool:
    """Whether a name can be stored in a table; names of other encodings cannot."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


@functools.cache
def identify_name(suffix: str) -> Media | None:
    """Tell what files hold whose names end so, such as ".jpg" in lower case; None if the ending does not say."""
    if suffix in HEIC_SUFFIXES:
        return Media("image", None if has_heic() else NEEDS_PILLOW_HEIF)
    if suffix in image_suffixes():
        return Media("image")
    if suffix in UNREADABLE_IMAGES:
        return Media("image", UNREADABLE_IMAGES[suffix])
    if suffix in sound_suffixes():
        return Media("audio")
    if suffix in VIDEOS:
        return Media("video", VIDEO)
    return Media("audio", describe_unreadable(ANY_HEAD, suffix)) if suffix in CONTAINER_SUFFIXES else None


def identify_head(head: bytes) -> Media | None:
    """Tell what a file holds by its first 132 bytes; None for neither images, recordings nor videos."""
    if head[4:8] == b"ftyp":
        brand = head[8:12].decode("ascii", "replace").strip().lower()
        if brand in ("avif", "avis"):
            return identify_name(".avif")
        if brand in ("heic", "heix", "hevc", "mif1", "msf1"):
            return identify_name(".heic")
        return identify_name(".m4a" if brand in ("m4a", "m4b") else ".mp4")
    for offset, signature, kind in SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return identify_name(".dcm") if signature == b"DICM" else Media(kind)
    return Media("audio", describe_unreadable(head, "")) if name_container(head, "") in SOUND_CONTAINERS else None


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Endings of images that Pillow opens, in lower case with their dots."""
    endings = PILImage.registered_extensions()
    return frozenset(suffix for suffix, name in endings.items() if name in PILImage.OPEN) - NOT_IMAGES


@functools.cache
def sound_suffixes() -> frozenset[str]:
    """Endings of recordings that soundfile opens, in lower case with their dots."""
    formats = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw", ".mat4", ".mat5", ".sd2"}
    return frozenset(formats | {".opus", ".oga", ".aif", ".aifc", ".snd", ".sph"})
