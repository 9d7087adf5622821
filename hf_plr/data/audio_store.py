"""Recordings of a data set as waveforms at one sampling rate, ordered by length."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from hf_plr.data.audio_decoding import UnreadableRecording, decode_waveform, read_length, read_sampling_rate
from hf_plr.data.audio_segments import Segmentation, decode_segments, iterate_segments
from hf_plr.data.decoded_cache import DecodedCache
from hf_plr.data.manifest import Manifest
from hf_plr.data.sample_store import Finding, SampleStore, collate_notes, select_undecoded, spread_rows
from hf_plr.utils.distributed import gather_results
from hf_plr.utils.progress import track

HEADERS_READ = 32  # recordings whose files are in memory together
SCALE, SAMPLE = np.dtype(np.float32), np.dtype(np.int16)  # of a clip in the cache
KEPT_FORM = "exact where 16 bits are"  # of samples and scale; names other files than those of other forms
MUCH_LONGER = 10  # times the median length, from where on a recording is warned of


class AudioFormat:
    """Settings to decode recordings, as the model and its feature extractor require.

    Args:
        feature_extractor: any feature extractor of waveforms, such as `Wav2Vec2FeatureExtractor`, or of spectrograms if
            the model takes them.
        min_samples: smallest length that the model accepts (its receptive field), at least 1. Shorter recordings are
            followed by zeros.
        max_seconds: length to which longer recordings are cut; None leaves them whole.
        segment_seconds: length of the segments that recordings are cut into, each a sample; None for whole recordings.
            With `max_seconds` the beginning of a recording is cut into segments.
        segment_overlap: seconds that neighbouring segments have in common.
        takes_waveforms: whether the model takes waveforms, not spectrograms that the feature extractor makes of them.

    Attributes:
        sampling_rate: samples per second (Hz).
        do_normalize: whether the model expects waveforms of zero mean and unit variance.
        min_samples, max_samples: bounds of a recording's length; the second is None without `max_seconds`.
        segmentation: the rule that cuts recordings, None for whole ones.

    Raises:
        ValueError: if the feature extractor has no sampling rate or makes spectrograms, `max_seconds` or
            `segment_seconds` is shorter than `min_samples`, segments overlap by their whole length, or `max_seconds` is
            not longer than `segment_seconds`.
    """

    def __init__(
        self,
        feature_extractor: Any,
        min_samples: int,
        max_seconds: float | None = None,
        segment_seconds: float | None = None,
        segment_overlap: float = 0.0,
        takes_waveforms: bool = True,
    ):
        settings, name = vars(feature_extractor), type(feature_extractor).__name__
        if settings.get("sampling_rate") is None:
            raise ValueError(
                f"{name} has no sampling_rate: a feature extractor of waveforms is needed; use one such as "
                "Wav2Vec2FeatureExtractor"
            )
        for setting, expected in (("feature_size", 1), ("num_mel_bins", None)):
            if takes_waveforms and settings.get(setting) != expected:
                raise ValueError(
                    f"{name} makes spectrograms ({setting}={settings.get(setting)}), but the model takes "
                    "waveforms: use a feature extractor such as Wav2Vec2FeatureExtractor"
                )
        if min_samples < 1:
            raise ValueError(f"min_samples={min_samples} must be at least 1")
        self.sampling_rate = int(settings["sampling_rate"])
        self.do_normalize = takes_waveforms and bool(settings.get("do_normalize", False))
        self.min_samples = min_samples
        self.max_samples = None if max_seconds is None else round(max_seconds * self.sampling_rate)
        if self.max_samples is not None and self.max_samples < min_samples:
            raise ValueError(
                f"max_seconds={max_seconds} is too short: the model needs at least {min_samples} samples, "
                f"{min_samples / self.sampling_rate:.4f} seconds at {self.sampling_rate} Hz"
            )
        self.segmentation: Segmentation | None = None
        if segment_seconds is not None:
            self.segmentation = Segmentation.from_seconds(
                segment_seconds, segment_overlap, self.sampling_rate, min_samples
            )
            if self.max_samples is not None and self.max_samples <= self.segmentation.length:
                raise ValueError(
                    f"segment_seconds={segment_seconds} has no effect: max_seconds={max_seconds} leaves nothing longer"
                )


class AudioStore(SampleStore):
    """Recordings of a data set by position: `{"index": int, "input_values": float32 (T,)}`, optionally with a label.

    Positions ascend by length, so that neighbours make batches with little padding. When the store is built, lengths
    are read from the headers of the files, each process those of its own rows; a recording whose header tells none is
    decoded. One that turns out to be shorter than its header says, as a truncated MP3, has its true length when the
    store is checked, see `SampleStore`. Waveforms are kept in 16 bits when they are decoded for the first time: in
    memory if all of them fit into `cache_bytes`, or in a file (see `DecodedCache`). Otherwise they are decoded again
    when needed, with the same values. Those of files of 16 bits and one channel at the rate of the model are exact,
    others are rounded to their peak / 32767.

    Where `audio_format` has a segmentation, every segment of a recording is a sample, with the label of the recording.
    Recordings are then read segment by segment. One that turns out to be damaged is left out as a whole.

    Example:
        >>> from transformers import Wav2Vec2FeatureExtractor
        >>> from hf_plr.data.example_data import make_synthetic_recordings
        >>> audio_format = AudioFormat(Wav2Vec2FeatureExtractor(sampling_rate=8000), min_samples=400)
        >>> store = AudioStore(make_synthetic_recordings(n_per_class=1), "audio", audio_format)
        >>> len(store), sorted(store.check()[0])
        (8, ['index', 'input_values'])

    Args:
        dataset: the data set; it is not changed.
        audio_column: its column of recordings.
        audio_format: settings to decode them.
        label_column: column of true labels for scoring, returned as "labels"; None leaves them out.
        label_names: see `encode_labels`.
        cache_bytes: memory for decoded waveforms; they are kept if all of them fit.
        cache_dir: folder for a file with them in place of memory, of any size that fits on the disk.
        skip_unreadable: leave unreadable recordings out with a warning, rather than raise.
        manifest_dir: folder for what is found out about the rows, for later runs; None leaves no trace.
        state: the processes that open the data set together; None for one alone.
        numbers: see `SampleStore`.
        progress: show a progress bar.

    Attributes:
        rows: row of the data set at each position, by length and then ascending; shape (len(self),).
        segments: start and end in seconds of each position, float64 (len(self), 2); None where recordings are whole.
        lengths: samples of each position, ascending; int64 array of shape (len(self),).
        stored_rates: lowest and highest samples per second (Hz) of the recordings as they are stored, by all headers.
        unreadable: rows that were left out.

    Raises:
        ValueError: if the data set is empty, no recording is readable, an array has no sampling rate, or the disk has
            no room for the file.
        UnreadableRecording: if the header of a recording cannot be read, naming its row.
    """

    noun = "recording"
    input_name = "input_values"
    unreadable_error = UnreadableRecording
    decode_batch = 32  # their files are in memory together and may be long

    def __init__(
        self,
        dataset: Dataset,
        audio_column: str,
        audio_format: AudioFormat,
        label_column: str | None = None,
        label_names: dict[str, int] | None = None,
        cache_bytes: int = 2**31,
        cache_dir: str | os.PathLike[str] | None = None,
        skip_unreadable: bool = False,
        manifest_dir: str | os.PathLike[str] | None = None,
        state: PartialState | None = None,
        numbers: np.ndarray | None = None,
        progress: bool = False,
    ):
        super().__init__(dataset, audio_column, label_column, label_names, skip_unreadable, state, numbers)
        self.audio_format = audio_format
        self._cache_limits = cache_bytes, cache_dir
        manifest = self._open_manifest(manifest_dir, f"{audio_format.sampling_rate}|{audio_format.max_samples}")
        if manifest is None or manifest.totals is None or manifest.rates is None:
            self.is_checked = False
            self._totals, self.stored_rates, found = self._read_totals(progress)
        else:
            self._totals, self.stored_rates, found = manifest.totals, manifest.rates, self._known
        self._cut_rows: np.ndarray | None = None
        self._adopt(found)

    def batch(self, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Load the recordings at these positions (B,).

        Returns:
            "index" (B,), "input_values" (B, T), float32 with zeros behind a recording's end, and "lengths" (B,), int64.
        """
        return {"index": positions} | _pad(self._load_inputs(positions.numpy()))

    def describe_long(self) -> str | None:
        """Describe recordings that are much longer than the rest, and the arguments that help; None without any."""
        seconds = self.lengths / self.audio_format.sampling_rate
        median = float(np.median(seconds))
        n_long = int(np.count_nonzero(seconds > MUCH_LONGER * median))
        if n_long == 0:
            return None
        verb = "is" if n_long == 1 else "are"
        return (
            f"{n_long:,} of {len(seconds):,} recordings {verb} longer than {MUCH_LONGER} times the median "
            f"({median:.3g} s), the longest {seconds[-1]:.4g} s: --segment_seconds S cuts them into samples, "
            "--max_seconds S takes their beginnings"
        )

    def examine(self) -> dict[int, Finding]:
        """As in `SampleStore`: true lengths are findings where headers tell others."""
        found = super().examine()
        return {
            row: None if isinstance(finding, int) and finding == self._totals[row] else finding
            for row, finding in found.items()
        }

    # ---- lengths and clips: a clip is a recording, or a segment of it ---------------------------------------------

    def _read_totals(self, progress: bool) -> tuple[np.ndarray, tuple[int, int], dict[int, Finding]]:
        """Read the samples of each row (N,), the range of stored rates, and why some have none, from the headers.

        All processes do it together, each for its own rows.
        """
        form, n = self.audio_format, len(self._column)
        processes, index = (1, 0) if self._state is None else (self._state.num_processes, self._state.process_index)
        totals, reasons = np.full(n, -1, np.int64), dict[int, Finding]()
        rates = set[int]()
        failure: Exception | None = None
        own = np.array_split(np.arange(n), processes)[index]
        starts = range(0, len(own), HEADERS_READ)
        try:
            for start in track(starts, "Reading the lengths of recordings", len(starts), progress):
                rows = own[start : start + HEADERS_READ]
                for row, value in zip(rows.tolist(), self._read_column(rows), strict=True):
                    try:
                        totals[row], rate = read_length(value, row, form.sampling_rate, form.max_samples)
                        rates.add(rate)
                    except UnreadableRecording as error:
                        reasons[row] = str(error)
        except Exception as error:  # the other processes wait: tell them before raising
            failure = error
        parts = gather_results(self._state, (totals[own], reasons, rates), failure)
        found = {row: reason for _, each, _ in parts for row, reason in each.items()}
        stored = set[int]().union(*(each for _, _, each in parts)) or {form.sampling_rate}
        return np.concatenate([part for part, _, _ in parts]), (min(stored), max(stored)), found

    def _cut(self, rows: np.ndarray) -> None:
        """List the clips of these rows, also of those that may turn out to be unreadable, and open their cache."""
        form = self.audio_format
        self._cut_rows = rows
        if form.segmentation is None:
            self._clip_rows, lengths = rows, self._totals[rows]
        else:
            spans = [form.segmentation.split(total) for total in self._totals[rows].tolist()]
            self._clip_rows = np.repeat(rows, [len(each) for each in spans])
            self._clip_spans = np.array([span for each in spans for span in each], np.int64).reshape(-1, 2)
            lengths = self._clip_spans[:, 1]
        self._clip_lengths = np.maximum(lengths, form.min_samples)
        self._cache = self._make_cache(*self._cache_limits)

    def _make_cache(self, cache_bytes: int, cache_dir: str | os.PathLike[str] | None) -> DecodedCache | None:
        offsets = np.concatenate([[0], np.cumsum(SCALE.itemsize + SAMPLE.itemsize * self._clip_lengths)])
        if cache_dir is not None:
            form, lengths = self.audio_format, hashlib.sha256(self._clip_lengths.tobytes()).hexdigest()
            settings = f"{form.sampling_rate}|{form.max_samples}|{form.segmentation}|{lengths}"
            key = f"{self._fingerprint}|{self._column_name}|{self._stamp}|{settings}|{KEPT_FORM}"
            return DecodedCache.in_file(cache_dir, "sounds", key, offsets)
        is_small = SAMPLE.itemsize * int(self._clip_lengths.sum()) <= cache_bytes
        return DecodedCache.in_memory(offsets) if is_small else None

    def _order(self, sizes: dict[int, int]) -> None:
        self._totals[list(sizes)] = list(sizes.values())
        rows = np.setdiff1d(np.flatnonzero(self._totals >= 0), self.unreadable)
        if sizes or self._cut_rows is None or len(rows) != len(self._cut_rows):
            if self._cache is not None:
                self._cache.remove()  # later runs know the true lengths, and what is unreadable
            self._cut(rows)
        self._clips = np.argsort(self._clip_lengths, kind="stable")  # number of the clip at each position
        self.rows, self.lengths = self._clip_rows[self._clips], self._clip_lengths[self._clips]
        if self.audio_format.segmentation is not None:
            self._spans = self._clip_spans[self._clips]  # start and length, in samples
            self.segments = np.cumsum(self._spans, axis=1) / self.audio_format.sampling_rate

    def _make_manifest(self, unreadable: Sequence[int], sizes: dict[int, int]) -> Manifest:
        totals = self._totals.copy()
        totals[list(sizes)] = list(sizes.values())
        return Manifest(np.unique(np.asarray(unreadable, np.int64)), totals, self.stored_rates)

    def _examine(self, row: int) -> Finding:
        form = self.audio_format
        (value,) = self._read_column(np.array([row]))
        try:
            if form.segmentation is None:
                return len(decode_waveform(value, row, form.sampling_rate, max_samples=form.max_samples))
            cut = iterate_segments(value, row, form.sampling_rate, form.segmentation, form.max_samples)
            return max(start + len(waveform) for start, waveform in cut)
        except UnreadableRecording as error:
            return str(error)

    # ---- decoding ------------------------------------------------------------------------------------------------

    def _number(self, positions: np.ndarray) -> np.ndarray:
        return self._clips[positions]

    def _make_placeholder(self, position: int) -> torch.Tensor:
        return torch.zeros(self.audio_format.min_samples)  # a damaged header may promise hours

    def _load_inputs(self, positions: np.ndarray) -> list[torch.Tensor]:
        cache, numbers = self._cache, self._clips[positions]
        if cache is None:
            return [clip.to_waveform() for clip in self._decode(positions)]
        is_kept = cache.find(numbers)
        decoded = iter(self._decode(positions[~is_kept]))
        waveforms = []
        for number, is_known in zip(numbers.tolist(), is_kept.tolist(), strict=True):
            clip = _Clip.from_bytes(cache.read(number)) if is_known else next(decoded)
            if not is_known:
                cache.write(number, clip.to_bytes())
            waveforms.append(clip.to_waveform())
        return waveforms

    def _decode(self, positions: np.ndarray) -> list[_Clip]:
        """Decode the clips at these positions, all segments of a recording while it is open.

        Raises:
            UnreadableRecording: also if a recording has fewer samples than is known of it.
        """
        clips: dict[int, _Clip] = {}
        rows = np.unique(self.rows[positions])
        # The files of long recordings are not in memory together.
        values = (
            self._read_column(rows)
            if self.segments is None
            else (self._read_column(rows[[i]])[0] for i in range(len(rows)))
        )
        for row, value in zip(rows.tolist(), values, strict=True):
            chosen = positions[self.rows[positions] == row]
            clips |= dict(
                zip(chosen.tolist(), map(_Clip.from_waveform, self._decode_row(row, value, chosen)), strict=True)
            )
        return [clips[position] for position in positions.tolist()]

    def _decode_row(self, row: int, value: Any, positions: np.ndarray) -> list[np.ndarray]:
        """Decode the clips of a recording at these positions."""
        form = self.audio_format
        if self.segments is None:
            waveforms = [decode_waveform(value, row, form.sampling_rate, max_samples=form.max_samples)]
            lengths = self._totals[[row]].tolist()
        else:
            spans = [(int(start), int(length)) for start, length in self._spans[positions]]
            waveforms = decode_segments(value, row, form.sampling_rate, spans, form.max_samples)
            lengths = [length for _, length in spans]
        if [len(waveform) for waveform in waveforms] != lengths:
            raise UnreadableRecording(f"recording {row} is shorter than its header says, or has changed")
        waveforms *= len(positions) if self.segments is None else 1  # a position may be asked for twice
        return [np.pad(waveform, (0, max(0, form.min_samples - len(waveform)))) for waveform in waveforms]


def collate_recordings(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack items of an `AudioStore` to a batch: the keys of `AudioStore.batch`, and what items have beside them."""
    index = torch.tensor([item["index"] for item in items])
    return {"index": index} | _pad([item["input_values"] for item in items]) | collate_notes(items)


def read_sampling_rates(dataset: Dataset, audio_column: str, n_samples: int = 256) -> list[int]:
    """Read the samples per second (Hz) of up to `n_samples` recordings, evenly spaced, without unreadable ones.

    Raises:
        ValueError: if none of them can be read, or an array has no sampling rate.
    """
    column = select_undecoded(dataset, audio_column)
    selected = spread_rows(len(dataset), n_samples)
    rates: list[int] = []
    first_error: UnreadableRecording | None = None
    for rows in np.array_split(selected, range(AudioStore.decode_batch, len(selected), AudioStore.decode_batch)):
        for row, value in zip(rows.tolist(), column[rows.tolist()][audio_column], strict=True):
            try:
                rates.append(read_sampling_rate(value, row))
            except UnreadableRecording as error:
                first_error = first_error or error
    if not rates:
        raise ValueError(f"none of {len(selected)} recordings can be read; the first: {first_error}")
    return rates


class _Clip(NamedTuple):
    """A waveform in 16 bits: samples x scale."""

    samples: torch.Tensor  # int16 (T,)
    scale: float  # 2^-15 where that gives the very waveform, otherwise peak / 32767; exact in float32; 0 for silence

    @classmethod
    def from_waveform(cls, waveform: np.ndarray) -> _Clip:
        peak = np.abs(waveform).max()
        scale = peak / np.float32(32767)
        if scale < np.finfo(np.float32).tiny:  # a division would overflow
            return cls(torch.zeros(len(waveform), dtype=torch.int16), 0.0)
        if peak <= 1:  # as of a file of 16 bits at this rate?
            steps = waveform * np.float32(2**15)  # exact
            samples = np.rint(steps)
            if np.array_equal(samples, steps) and samples.max() < 2**15:
                return cls(torch.from_numpy(samples.astype(np.int16)), 2.0**-15)
        return cls(torch.from_numpy(np.rint(waveform / scale).astype(np.int16)), float(scale))

    @classmethod
    def from_bytes(cls, content: np.ndarray) -> _Clip:
        samples = content[SCALE.itemsize :].view(SAMPLE).copy()  # torch refuses memory that cannot be written to
        return cls(torch.from_numpy(samples), float(content[: SCALE.itemsize].view(SCALE)[0]))

    def to_bytes(self) -> np.ndarray:
        return np.concatenate([np.array([self.scale], SCALE).view(np.uint8), self.samples.numpy().view(np.uint8)])

    def to_waveform(self) -> torch.Tensor:
        return self.samples.float() * self.scale


def _pad(waveforms: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        "input_values": pad_sequence(waveforms, batch_first=True),
        "lengths": torch.tensor([len(waveform) for waveform in waveforms]),
    }
