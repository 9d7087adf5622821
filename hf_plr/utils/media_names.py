"""Names of images and recordings, as tables have them and disks do."""

from __future__ import annotations

import os

from hf_plr.utils.files import compose_accents

ENDINGS = {
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".heic", ".avif"),
    *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aif", ".aiff", ".au"),
}


def may_be_one_file(one: str, other: str) -> bool:
    """True unless two names are of different images or recordings, whatever their folders and endings are."""
    bases = [compose_accents(name).replace("\\", "/").rpartition("/")[2] for name in (one, other)]
    if bases[0] == bases[1]:
        return True
    (stem, ending), (other_stem, other_ending) = (os.path.splitext(base) for base in bases)
    if bases[0] == other_stem or bases[1] == stem:  # one has no ending
        return True
    return stem == other_stem and {ending.lower(), other_ending.lower()} <= ENDINGS
