"""Bins of times, and the test of shares over them."""

from __future__ import annotations

import datetime
import re

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from hf_plr.report.drift import MAX_BINS, bin_times, homogeneity

MONDAY = datetime.datetime(2026, 8, 3, 10, 0)


def bins_of(values):
    return bin_times(Dataset.from_dict({"taken": values}), "taken")


@pytest.mark.parametrize(
    ("step", "unit", "second"),
    [
        (datetime.timedelta(minutes=1), "minute", "2026-08-03 10:01"),
        (datetime.timedelta(hours=1), "hour", "2026-08-03 11:00"),
        (datetime.timedelta(days=1), "day", "2026-08-04"),
        (datetime.timedelta(weeks=1), "week", "2026-08-10"),
        (datetime.timedelta(days=31), "month", "2026-09"),
        (datetime.timedelta(days=92), "quarter", "2026Q4"),
        (datetime.timedelta(days=366), "year", "2027"),
    ],
)
def test_the_shortest_unit_that_fits_is_chosen(step, unit, second):
    times = bins_of([MONDAY + i * step for i in range(20)])
    assert times.unit == unit
    assert times.starts[1] == second
    assert times.bins.tolist() == list(range(20))


def test_text_numbers_and_gaps_are_read():
    times = bins_of(["2026-08-03", "2026-08-04T12:00:00Z", None, "", "2026-08-06"])
    assert times.bins.tolist() == [0, 1, -1, -1, 3]
    assert times.starts == ["2026-08-03", "2026-08-04", "2026-08-05", "2026-08-06"]
    seconds = [1_785_750_000, 1_785_750_000 + 86_400]
    for scale in (1, 1_000, 1_000_000_000):
        assert bins_of([scale * second for second in seconds]).unit == "hour"
    assert bins_of([3, 4, None, 9]).bins.tolist() == [0, 1, -1, 6]
    assert bins_of([3, 4, None, 9]).starts[6] == "9"
    assert bins_of([0.5, 0.5]).bins.tolist() == [0, 0]
    assert bins_of(["August 3, 2026", "2026-08-05"]).bins.tolist() == [0, 2]


@pytest.mark.parametrize(
    "dates",
    [
        [f"{day:02d}/04/2026" for day in range(1, 31)],
        [f"{day}.4.26" for day in range(1, 31)],
        [f"04/{day:02d}/2026 10:00" for day in range(1, 31)],
        [f"{day:02d}.04.2026" for day in range(1, 13)],  # with dots the day comes first
        [20_260_400 + day for day in range(1, 31)],
        [f"{20_260_400 + day}" for day in range(1, 31)],
        [f"2026:04:{day:02d} 10:15:00" for day in range(1, 31)],  # as cameras write them, by Exif
        [f"2026:04:{day:02d}T10:15:00+02:00" for day in range(1, 31)],
        [f"2026:04:{day:02d}" for day in range(1, 31)],
        [f"{day} Apr 26" for day in range(1, 31)],
        [f"Apr {day} 10:15:00 2026" for day in range(1, 31)],
    ],
)
def test_a_month_of_dates_is_a_month_in_each_notation(dates):
    times = bins_of(dates)
    assert times.unit == "day"
    assert times.starts[:2] == ["2026-04-01", "2026-04-02"]
    assert times.bins.tolist() == list(range(len(dates)))


@pytest.mark.parametrize(
    "text",
    ["March", "August 3", "8/3", "10:15", "10:15:00.123456", "10 am", "Aug 3 10am", "10:15 Aug 3", "today", "now"],
)
def test_text_without_a_year_is_no_date(text):
    with pytest.raises(ValueError, match=re.escape(f"row 1 holds {text!r}, which is not a date")):
        bins_of(["2026-08-03", text])
    with pytest.raises(ValueError, match=re.escape(f"row 0 holds {text!r}, which is not a date")):
        bins_of([text, text])


def test_days_and_months_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="'03/04/2026' may begin with the day or with the month, and no row tells"):
        bins_of(["03/04/2026", "03/05/2026"])
    with pytest.raises(
        ValueError, match=r"days before months \('13/04/2026'\) and months before days \('04/14/2026'\)"
    ):
        bins_of(["13/04/2026", None, "04/14/2026"])
    assert bins_of(["04/04/2026", "05/05/2026"]).bins.tolist() == [0, 31]
    assert bins_of([20_260_231, 20_260_301]).unit != "day"  # there is no such day: numbers


@given(st.lists(st.one_of(st.none(), st.integers(-5_000, 5_000), st.floats(-1e6, 1e6)), min_size=1, max_size=60))
def test_numbers_keep_their_order_in_at_most_as_many_bins(values):
    known = [value for value in values if value is not None]
    if not known:
        return
    times = bins_of([None if value is None else float(value) for value in values])
    assert len(times.starts) <= MAX_BINS
    assert times.bins.max() < len(times.starts)
    placed = [(value, place) for value, place in zip(values, times.bins.tolist(), strict=True) if value is not None]
    assert [place for _, place in sorted(placed)] == sorted(place for _, place in placed)
    assert all((place == -1) == (value is None) for value, place in zip(values, times.bins.tolist(), strict=True))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["2026-08-03", "soon"], "row 1 holds 'soon', which is not a date"),
        ([True, False], "dates or numbers are needed"),
        ([[1], [2]], "dates or numbers are needed"),
        ([None, ""], "is empty in every row"),
    ],
)
def test_other_columns_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        bins_of(values)
    with pytest.raises(ValueError, match="time_column='when' is not in the data set; the columns are: taken"):
        bin_times(Dataset.from_dict({"taken": values}), "when")


def test_shares_are_compared_by_chi_square():
    rng = np.random.default_rng(0)
    totals = np.array([200, 0, 300, 250])
    counts = np.stack([rng.binomial(totals, share) for share in (0.1, 0.3)])
    counts = np.vstack([counts, [40, 0, 20, 90], [1, 0, 2, 0]])
    found = homogeneity(counts, totals)
    filled = totals > 0
    for row, p_value in zip(counts[:3], found, strict=False):
        table = np.stack([row[filled], (totals - row)[filled]])
        assert p_value == pytest.approx(chi2_contingency(table, correction=False).pvalue)
    assert found[2] < 1e-6 < 0.01 < found[0]
    assert np.isnan(found[3])  # too few to tell
    assert np.isnan(homogeneity(counts[:1, :1], totals[:1])).all()


def test_numbers_that_only_partly_look_like_dates():
    fractions = bin_times(Dataset.from_dict({"t": [2.0e7 + 0.5, 2.0e7 + 7.25, 2.1e7]}), "t")
    assert fractions.unit == "2.78e+04"
    assert fractions.bins.tolist() == [0, 0, 35]
    endless = bin_times(Dataset.from_dict({"t": [20200101.0, float("inf"), 20200103.0]}), "t")
    assert endless.unit == "day"
    assert endless.bins.tolist() == [0, -1, 2]
