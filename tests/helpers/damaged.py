"""Files that are damaged in many ways, and readers that must name them."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_plr.data.unreadable import UnreadableSample

ROOM = 1 << 30  # bytes that a reader of a few kilobytes may not ask for


@st.composite
def damaged(draw, whole):
    """Bytes of a file that was cut off, has other bits or bytes, goes on as it should not, or is something else."""
    kind = draw(st.sampled_from(["cut", "flipped", "flipped", "replaced", "replaced", "longer", "other"]))
    place = st.integers(0, len(whole) - 1) | st.integers(0, min(len(whole), 400) - 1)  # headers matter most
    if kind == "cut":
        return whole[: draw(place)]
    if kind == "longer":
        return whole[: draw(place)] + draw(st.binary(max_size=60))
    if kind == "other":
        return draw(st.binary(max_size=200))
    changed = bytearray(whole)
    for at in draw(st.lists(place, min_size=1, max_size=4)):
        changed[at] = changed[at] ^ 1 << draw(st.integers(0, 7)) if kind == "flipped" else draw(st.integers(0, 255))
    return bytes(changed)


@contextlib.contextmanager
def little_memory():
    """Make whatever asks for more than `ROOM` fail."""
    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return
    used = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmData")) * 1024
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def check_damaged(path, read, errors=(ValueError,), named=None, examples=150):
    """Read a file, damaged in many ways; `read` must itself assert that what it gets is well formed."""
    whole = path.read_bytes()
    read()

    @given(damaged(whole))
    @settings(max_examples=min(examples, settings.default.max_examples), database=None)
    @example(b"")
    @example(whole[:-1])
    def check(content):
        path.write_bytes(content)
        with little_memory():
            refusal = None
            try:
                read()
            except errors as error:
                refusal = error
        if refusal is not None:
            assert str(named or path) in str(refusal)
            if not isinstance(refusal, UnreadableSample):  # these are others' formats, read by others' code
                assert not isinstance(refusal.__cause__, MemoryError)

    try:
        check()
    finally:
        path.write_bytes(whole)
