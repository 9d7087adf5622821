"""Samples by time: bins of a column of dates or numbers, and clusters whose share changes over them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset
from scipy.stats import chi2

MAX_BINS = 36
UNITS = (("minute", "min"), ("hour", "h"), ("day", "D"), ("week", "W"), ("month", "M"), ("quarter", "Q"), ("year", "Y"))
UNIX_SECONDS = (6e8, 4.2e9)  # from 1989 to 2103
DIGIT_DATES = (19_890_101, 21_031_231)
NUMERIC_DATE = r"^\s*(\d{1,2})([./-])(\d{1,2})[./-]\d{2}"  # 31/08/2026, 8-31-26
EXIF_DATE = r"^\s*(\d{4}):(\d{2}):(\d{2})(?!\d)"  # 2026:08:31 10:15:00
TIME_OF_DAY = r"(?i)\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:\s*[+-]\d{2}:?\d{2})?|\b\d{1,2}\s*[ap]m\b"
WITH_YEAR = r"\d{4}|\d\D+\d+\D+\d|(?=.*[^\W\d_]{3}).*\d\D+\d"  # four digits, three numbers, or two and a month
UNIX_SCALES = (("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9))
LEAST_EXPECTED = 5.0  # samples of a cluster in a bin, on average, below which its changes are not judged
FORMATS = {"min": "%Y-%m-%d %H:%M", "h": "%Y-%m-%d %H:00", "M": "%Y-%m", "Y": "%Y"}


@dataclass(frozen=True)
class TimeBins:
    """Bins of the rows of a data set.

    Attributes:
        column: name of the column.
        bins: bin of each row, ascending by time, -1 = not known, int64 (N,).
        starts: where each bin begins, for people, (B,).
        unit: width of a bin, such as "week" or "3 years"; of numbers the number.
    """

    column: str
    bins: np.ndarray
    starts: list[str]
    unit: str


def bin_times(dataset: Dataset, column: str) -> TimeBins:
    """Put the rows of a data set into at most 36 bins of equal width, by a column of dates or numbers.

    Dates are timestamps, text with a year that pandas reads as dates or that is of Exif (2026:08:31 10:15:00), whole
    numbers that are all dates as 20260803, and numbers that all lie between 1989 and 2103 as seconds, milli-, micro- or
    nanoseconds of Unix time. Whether the day or the month comes first in dates such as 03/08/2026, the whole column
    tells. Bins are the shortest of minutes, hours, days, weeks, months, quarters and years that do, in UTC. Other
    numbers are binned as they are.

    Args:
        dataset: the data set.
        column: its column of times; empty values have no bin.

    Raises:
        ValueError: if it does not exist or holds something else, with the first value that cannot be read, or if
            days and months cannot be told apart.
    """
    if column not in dataset.column_names:
        raise ValueError(
            f"time_column={column!r} is not in the data set; the columns are: {', '.join(dataset.column_names)}"
        )
    values = dataset.select_columns([column]).with_format("arrow")[:][column]
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    kind = values.type
    if pa.types.is_boolean(kind) or pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise ValueError(f"time_column={column!r} holds {kind}: dates or numbers are needed")
    series = values.to_pandas()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _bin_dates(column, _parse_text(column, series))
    if pa.types.is_temporal(kind):
        if pa.types.is_time(kind) or pa.types.is_duration(kind):
            raise ValueError(f"time_column={column!r} holds {kind}: dates or numbers are needed")
        return _bin_dates(column, pd.to_datetime(series, utc=True))
    numbers = series.to_numpy(np.float64, na_value=np.nan)
    finite = numbers[np.isfinite(numbers)]
    is_whole = bool((finite == np.rint(finite)).all())
    if len(finite) and is_whole and DIGIT_DATES[0] <= finite.min() and finite.max() <= DIGIT_DATES[1]:
        known = pd.Series(np.where(np.isfinite(numbers), numbers, np.nan))
        dates = pd.to_datetime(known.astype("Int64").astype("string"), format="%Y%m%d", errors="coerce")
        if dates.notna().sum() == len(finite):
            return _bin_dates(column, dates.dt.tz_localize("UTC"))
    for unit, scale in UNIX_SCALES:
        if len(finite) and UNIX_SECONDS[0] * scale <= finite.min() and finite.max() <= UNIX_SECONDS[1] * scale:
            known = pd.Series(np.where(np.isfinite(numbers), numbers, np.nan))
            return _bin_dates(column, pd.to_datetime(known, unit=unit, utc=True))
    return _bin_numbers(column, numbers)


def _parse_text(column: str, series: pd.Series) -> pd.Series:
    text = series.where(series.str.strip() != "").str.replace(EXIF_DATE, r"\1-\2-\3", regex=True)
    dates = pd.to_datetime(text, errors="coerce", utc=True, format="ISO8601")
    if (dates.isna() & text.notna()).any():
        dates = pd.to_datetime(text, errors="coerce", utc=True, format="mixed")
        numeric = text.str.match(NUMERIC_DATE).fillna(False).astype(bool)
        if numeric.any() and _find_order(
            column, text[numeric]
        ):  # of the others, pandas would turn 2026-08-05 round too
            dates[numeric] = pd.to_datetime(text[numeric], errors="coerce", utc=True, format="mixed", dayfirst=True)
    # Of text without a year pandas makes this year, or the year 1.
    has_year = text.str.replace(TIME_OF_DAY, "", regex=True).str.contains(WITH_YEAR, regex=True).fillna(False)
    bad = np.flatnonzero(((dates.isna() | ~has_year.astype(bool)) & text.notna()).to_numpy())
    if len(bad):
        raise ValueError(f"time_column={column!r}: row {bad[0]} holds {series.iloc[bad[0]]!r}, which is not a date")
    return dates


def _find_order(column: str, text: pd.Series) -> bool:
    """True if the day comes first in dates that match `NUMERIC_DATE`; with dots it does where it can.

    Raises:
        ValueError: if it comes first in some rows alone, or no row tells.
    """
    parts = text.str.extract(NUMERIC_DATE)
    first, second = parts[0].astype(int), parts[2].astype(int)
    if (first > 12).any() and (second > 12).any():
        days, months = text[(first > 12).idxmax()], text[(second > 12).idxmax()]
        raise ValueError(
            f"time_column={column!r} has days before months ({days!r}) and months before days ({months!r}): write "
            "dates as 2026-08-31"
        )
    is_open = (first != second) & (parts[1] != ".")
    if is_open.any() and not (first > 12).any() and not (second > 12).any():
        raise ValueError(
            f"time_column={column!r}: {text[is_open.idxmax()]!r} may begin with the day or with the month, and no row "
            "tells: write dates as 2026-08-31"
        )
    return not (second > 12).any()


def _bin_dates(column: str, dates: pd.Series) -> TimeBins:
    known = dates.notna().to_numpy()
    if not known.any():
        raise ValueError(f"time_column={column!r} is empty in every row")
    moments = dates[known].dt.tz_localize(None)
    name, code = next(unit for unit in UNITS if _count_periods(moments, unit[1]) <= MAX_BINS or unit is UNITS[-1])
    periods = moments.dt.to_period(code)
    first, span = periods.min(), _count_periods(moments, code)
    width = -(-span // MAX_BINS)
    ordinals = pd.PeriodIndex(periods).asi8 - first.ordinal
    starts = [first + width * i for i in range(-(-span // width))]
    labels = [
        str(start) if code == "Q" else start.start_time.strftime(FORMATS.get(code, "%Y-%m-%d")) for start in starts
    ]
    return TimeBins(column, _place(known, ordinals // width), labels, name if width == 1 else f"{width} {name}s")


def _count_periods(moments: pd.Series, code: str) -> int:
    first, last = (moment.to_period(code).ordinal for moment in (moments.min(), moments.max()))
    return int(last - first + 1)


def _bin_numbers(column: str, numbers: np.ndarray) -> TimeBins:
    known = np.isfinite(numbers)
    if not known.any():
        raise ValueError(f"time_column={column!r} is empty in every row")
    values = numbers[known]
    low, high = float(values.min()), float(values.max())
    is_whole = bool((values == np.floor(values)).all())
    width = max((high - low) / MAX_BINS, np.finfo(np.float64).tiny)
    if is_whole:
        width = float(-(-(high - low + 1) // MAX_BINS))
    bins = np.minimum(((values - low) / width).astype(np.int64), MAX_BINS - 1)
    starts = [
        f"{low + width * i:.6g}" if not is_whole else f"{low + width * i:.0f}" for i in range(int(bins.max()) + 1)
    ]
    return TimeBins(column, _place(known, bins), starts, f"{width:.3g}")


def _place(known: np.ndarray, bins: np.ndarray) -> np.ndarray:
    placed = np.full(len(known), -1, np.int64)
    placed[known] = bins
    return placed


def homogeneity(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Test whether shares are alike in all bins, by Pearson's chi-square.

    Args:
        counts: samples of each part in each bin, (K, B).
        totals: all samples of each bin, (B,); empty bins are left out.

    Returns:
        p-values (K,), NaN where a part has fewer than 5 samples a bin on average, or there is a single bin.
    """
    filled = totals > 0
    counts, totals = counts[:, filled].astype(np.float64), totals[filled].astype(np.float64)
    n, n_bins = totals.sum(), len(totals)
    result = np.full(len(counts), np.nan)
    sums = counts.sum(axis=1)
    # Of either the part or its complement, whichever is smaller.
    is_judged = (np.minimum(sums, n - sums) >= LEAST_EXPECTED * n_bins) & (n_bins > 1)
    if is_judged.any():
        fraction = (sums[is_judged] / n)[:, None]
        expected = fraction * totals
        statistic = ((counts[is_judged] - expected) ** 2 / (expected * (1 - fraction))).sum(axis=1)
        result[is_judged] = chi2.sf(statistic, n_bins - 1)
    return result
