"""What starts the processes of other tests: ports, ends and the output of all of them."""

from __future__ import annotations

import os
import socket
import sys

import psutil
import pytest
from helpers.processes import (
    EPHEMERAL,
    StuckProcesses,
    is_free,
    list_ports_outside_the_ephemeral_range,
    reserve_port,
    run_group,
    run_processes,
)

FAILS = "print('said before'); raise ValueError('its own fault')"
HANGS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])
print(child.pid, flush=True)
def wait_for_ever():
    time.sleep(1000)
wait_for_ever()
"""


def run(tmp_path, *codes, **options):
    commands = [[sys.executable, "-c", code] for code in codes]
    return run_processes(commands, [os.environ] * len(codes), tmp_path, **options)


def assert_gone(pid):
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_all_programs_end_and_give_their_output(tmp_path):
    first, second = run(tmp_path, "print('one')", "import sys; sys.stderr.write('two')", timeout=300)
    assert (first.returncode, first.stdout.strip(), first.stderr) == (0, "one", "")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "two")


def test_a_failure_ends_the_others_which_say_where_they_were(tmp_path):
    hung, failed = run(tmp_path, HANGS, FAILS, timeout=1000, grace=10)
    assert failed.returncode == 1
    assert "said before" in failed.stdout
    assert "ValueError: its own fault" in failed.stderr
    assert hung.returncode != 0
    assert "in wait_for_ever" in hung.stderr
    assert_gone(int(hung.stdout))  # what it had started has ended with it


def test_after_the_timeout_all_output_is_shown_with_the_stacks(tmp_path):
    with pytest.raises(StuckProcesses, match="no end after 10 s") as stuck:
        run(tmp_path, "print('at the end')", HANGS, timeout=10)
    text = str(stuck.value)
    assert "process 0 ended with 0" in text
    assert "at the end" in text
    assert "in wait_for_ever" in text
    assert_gone(int(text.split("-- standard output")[2].split()[0]))


def test_a_failure_in_a_group_shows_the_output_of_all(tmp_path):
    code = "import os; rank = os.environ['RANK']; print('I am', rank); assert rank == '0', 'wrong rank'"
    with pytest.raises(AssertionError, match="AssertionError: wrong rank") as failed:
        run_group([sys.executable, "-c", code], os.environ, 2, tmp_path, 300)
    assert "I am 0" in str(failed.value)
    assert "I am 1" in str(failed.value)


def test_processes_of_a_group_are_shared_out_over_machines(tmp_path):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    code = f"""
import os, pathlib
own = [os.environ[name] for name in {names}]
pathlib.Path(own[0]).write_text(' '.join(own))
"""
    run_group([sys.executable, "-c", code], os.environ, 4, tmp_path, 300, machines=2)
    expected = {"0": "0 0 4 2", "1": "1 1 4 2", "2": "2 0 4 2", "3": "3 1 4 2"}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == expected


def test_a_reserved_port_is_free_and_nobody_elses(monkeypatch):
    with reserve_port() as port:
        assert is_free(port)
        monkeypatch.setattr("helpers.processes.list_ports_outside_the_ephemeral_range", lambda: [port])
        with pytest.raises(OSError, match="are in use"), reserve_port():
            pass
    with reserve_port() as again:
        assert again == port


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
def test_a_port_on_which_somebody_listens_is_not_free(address):
    with socket.socket() as other:
        other.bind((address, 0))
        other.listen()
        assert not is_free(other.getsockname()[1])


@pytest.mark.skipif(not EPHEMERAL.exists(), reason="only Linux says its ephemeral range there")
def test_the_system_hands_out_no_reserved_port():
    ports = list_ports_outside_the_ephemeral_range()
    assert len(ports) > 1000
    for _ in range(100):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            assert other.getsockname()[1] not in ports
