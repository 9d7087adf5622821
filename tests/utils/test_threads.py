"""Blocks are shared out among threads, each once, and torch's settings are as before."""

from __future__ import annotations

import threading

import pytest
import torch

from hf_plr.utils.threads import block_threads, share_blocks

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def test_every_thread_takes_blocks_and_operates_alone():
    meet = threading.Barrier(3, timeout=60)
    taken, n_threads = [], []

    def work(blocks):
        for block in blocks:
            if block < 3:
                meet.wait()  # three threads have one each
            n_threads.append(torch.get_num_threads())
            share_blocks([block], CPU, taken.extend)

    share_blocks(range(20), CPU, work)
    assert sorted(taken) == list(range(20))
    assert set(n_threads) == {1}


def test_contexts_are_nested_and_end_with_the_outermost():
    with block_threads(CPU):
        with block_threads(CPU):
            assert torch.get_num_threads() == 1
        test_every_thread_takes_blocks_and_operates_alone()
        assert torch.get_num_threads() == 1


def test_another_device_is_given_all_blocks_in_this_thread():
    calls = []
    share_blocks(range(5), torch.device("meta"), lambda blocks: calls.append((list(blocks), torch.get_num_threads())))
    assert calls == [([0, 1, 2, 3, 4], 3)]


@pytest.mark.parametrize("fails_in_main", [True, False])
def test_an_error_of_any_thread_is_raised_and_ends_the_others(fails_in_main):
    meet = threading.Barrier(3, timeout=60)
    taken = []

    def work(blocks):
        for block in blocks:
            if block < 3:
                meet.wait()
                if (threading.current_thread() is threading.main_thread()) == fails_in_main:
                    raise ValueError("of a block")
            taken.append(block)

    with pytest.raises(ValueError, match="of a block"):
        share_blocks(range(10**6), CPU, work)
    assert len(taken) < 10**6


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_modes_of_autograd_are_those_of_the_caller(mode):
    meet = threading.Barrier(3, timeout=60)
    found = []

    def work(blocks):
        for _ in blocks:
            meet.wait()
            found.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    with mode():
        expected = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        share_blocks(range(3), CPU, work)
    assert found == [expected] * 3
