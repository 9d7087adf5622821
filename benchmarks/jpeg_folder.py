"""A folder of JPEGs of any number, as large on disk and as slow to decode as photographs of their size.

A few hundred base pictures are made (smooth colour fields, edges and a texture whose strength differs), and each
image is a crop of one of them, flipped, recoloured and encoded. So 200,000 images of 320 px take minutes on one core
and the files' sizes spread as photographs' do (15 to 30 kB at quality 85). The content is worth nothing to a model:
what is measured on such a folder is the data path.
"""

import multiprocessing
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 320
QUALITY = 85
IMAGES_A_CLASS = 1000
BASES = 256
_MARGIN = 64


def make_jpeg_folder(folder: str | Path, images: int, processes: int = 1, seed: int = 0) -> Path:
    """Writes `images` JPEGs of 320 px into class folders of a thousand; folders that are whole are kept.

    The same seed gives the same files, whatever the number of processes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        (folder / f"class_{number:04d}", min(IMAGES_A_CLASS, images - first), seed, number)
        for number, first in enumerate(range(0, images, IMAGES_A_CLASS))
    ]
    if processes <= 1:
        for task in tasks:
            _write_class(*task)
        return folder
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(_write_class, tasks, chunksize=1)
    return folder


def _write_class(folder: Path, images: int, seed: int, number: int) -> None:
    if folder.is_dir() and len(list(folder.iterdir())) == images:
        return
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    unfinished.mkdir(exist_ok=True)
    bases = _bases(seed)
    rng = np.random.default_rng((seed, 1, number))
    for index in range(images):
        Image.fromarray(_picture(bases, rng)).save(unfinished / f"{index:06d}.jpg", quality=QUALITY)
    unfinished.rename(folder)


def _picture(bases: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A crop of a base, flipped and recoloured: uint8 [320, 320, 3]."""
    top, left = rng.integers(0, _MARGIN, size=2)
    crop = bases[rng.integers(len(bases)), top : top + SIZE, left : left + SIZE]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    gain, offset = rng.uniform(0.6, 1.1), rng.uniform(-20, 40)
    curve = np.clip(np.arange(256) * gain + offset, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(curve[crop][..., rng.permutation(3)])


_made: dict[int, np.ndarray] = {}


def _bases(seed: int) -> np.ndarray:
    """The base pictures, uint8 [256, 384, 384, 3], made once a process."""
    if seed not in _made:
        rng = np.random.default_rng((seed, 0))
        _made[seed] = np.stack([_base(rng) for _ in range(BASES)])
    return _made[seed]


def _base(rng: np.random.Generator) -> np.ndarray:
    side = SIZE + _MARGIN
    picture = np.zeros((side, side, 3))
    for cells, weight in ((3, 70.0), (8, 35.0), (24, 18.0), (64, 8.0)):
        picture += weight * _smooth_field(rng, cells, side)
    edges = _smooth_field(rng, 6, side)[..., :1] > 0
    picture += rng.uniform(10, 60) * edges
    picture += rng.uniform(1.0, 7.0) * rng.standard_normal((side, side, 1))
    return np.clip(picture + 110, 0, 255).astype(np.uint8)


def _smooth_field(rng: np.random.Generator, cells: int, side: int) -> np.ndarray:
    """A random field of `cells` values a side, enlarged smoothly: float [side, side, 3]."""
    values = rng.standard_normal((3, cells, cells)).astype(np.float32)
    grown = [np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC)) for plane in values]
    return np.stack(grown, axis=-1)
