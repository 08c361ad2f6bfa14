import os
import time

import numpy as np
import pytest
from mpi4py import MPI

from fedmpi.comm import Patience, waiting
from fedmpi.errors import RankFailure, WireError


class Clock:
    """A world in which a sleep takes as long as it is, and giving up the core 2^-13 s."""

    def __init__(self, monkeypatch):
        self.now, self.naps, self.yields = 0.0, [], 0
        monkeypatch.setattr(os, "sched_yield", self.give_way)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.naps.append(seconds)
        self.now += seconds

    def give_way(self):
        self.yields += 1
        self.now += 2**-13


def test_looks_often_at_first_then_less_and_less_and_then_every_longest(monkeypatch):
    clock = Clock(monkeypatch)
    Patience(first=1.0, longest=3.0, brisk=0).until(lambda: len(clock.naps) == 50, "x")
    np.testing.assert_allclose(clock.naps[:6], [1.0] * 5 + [5 / 4])
    np.testing.assert_allclose(clock.naps[6], (5 + 5 / 4) / 4)
    assert clock.naps == sorted(clock.naps)
    np.testing.assert_allclose(clock.naps[-3:], [3.0] * 3)


def test_in_the_middle_of_an_exchange_no_sleep_is_long(monkeypatch):
    clock = Clock(monkeypatch)
    patience = Patience(first=1e-4, longest=5e-3, deadline=9.0).lively(9, hub=True)
    patience.until(lambda: len(clock.naps) == 500, "x")
    assert max(clock.naps) == 5e-4
    assert patience.deadline == 9.0
    assert Patience(longest=1e-4).lively(9, hub=False).longest == 1e-4


def test_in_the_middle_of_an_exchange_the_server_looks_many_times_before_it_sleeps(monkeypatch):
    """Each look lets MPI take a message or two; what is waited for comes behind them."""
    clock, looks = Clock(monkeypatch), []

    def arrives(after):
        return lambda: len(looks) == after or looks.append(clock.now)

    Patience(brisk=0).until(arrives(5), "x")
    assert len(clock.naps) == 5
    clock.naps.clear()
    looks.clear()
    Patience(brisk=0).lively(9, hub=True).until(arrives(100), "x")
    assert len(clock.naps) == 100 // waiting.BURST
    assert len(looks) == 100  # and none after it has come


@pytest.mark.parametrize(("ranks", "cores", "looks"), [(2, 2, 32), (9, 2, 7), (9, 64, 32), (64, 2, 1), (1000, 2, 1)])
def test_the_more_ranks_share_a_core_the_less_often_each_looks(monkeypatch, ranks, cores, looks):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert Patience().lively(ranks, hub=False).looks == looks
    assert Patience().lively(ranks, hub=True).looks == waiting.BURST
    assert Patience().looks == 1  # where the wait may be long


def test_a_short_wait_never_sleeps(monkeypatch):
    clock = Clock(monkeypatch)
    Patience(brisk=2**-9).until(lambda: clock.yields == 15, "x")
    assert clock.naps == []
    Patience(brisk=2**-9).until(lambda: bool(clock.naps), "x")
    assert clock.yields == 15 + 16


def test_what_is_there_already_costs_no_sleep(monkeypatch):
    clock = Clock(monkeypatch)
    Patience().until(lambda: True, "x")
    assert clock.naps == []


def test_the_deadline_names_what_is_late_as_it_is_then(monkeypatch):
    clock = Clock(monkeypatch)
    with pytest.raises(RankFailure, match=r"no answer within 0\.5 s: rank 3, since \d+ looks .*comm\.deadline_s"):
        Patience(deadline=0.5).until(lambda: False, lambda: f"rank 3, since {len(clock.naps)} looks")
    assert 0.5 < clock.now < 0.52


def test_a_person_is_told_at_every_look(monkeypatch):
    clock, seen = Clock(monkeypatch), []
    Patience(notice=seen.append).until(lambda: len(clock.naps) == 3, "rank 1")
    assert seen == ["rank 1"] * 3


class TestSelf:
    """With real messages, from this process to itself."""

    def test_receives_bytes_of_unknown_number(self):
        sent = np.arange(1000, dtype=np.uint8)
        request = MPI.COMM_SELF.Isend(sent, 0)
        received = Patience(deadline=5).receive_bytes(MPI.COMM_SELF, 0, 1000, "the head")
        Patience(deadline=5).wait(request, "the send")
        np.testing.assert_array_equal(received, sent)

    def test_more_than_fits_is_refused_before_memory_is_taken(self):
        comm = MPI.COMM_SELF.Dup()
        request = comm.Isend(np.zeros(1001, np.uint8), 0)
        with pytest.raises(WireError, match=r"the head: 1001 bytes announced, at most 1000 fit the layout"):
            Patience(deadline=5).receive_bytes(comm, 0, 1000, "the head")
        request.Cancel()
        request.Free()

    def test_nobody_sends(self):
        comm = MPI.COMM_SELF.Dup()
        with pytest.raises(RankFailure, match="the head of client 4"):
            Patience(deadline=0.05).receive_bytes(comm, 0, 10, "the head of client 4")
        comm.Free()

    def test_a_list_of_requests_is_emptied(self):
        buffers = [np.zeros(3), np.ones(3)]
        requests = [MPI.COMM_SELF.Irecv(buffers[0], 0), MPI.COMM_SELF.Isend(buffers[1], 0)]
        Patience(deadline=5).wait_all(requests, "both")
        assert requests == []
        np.testing.assert_array_equal(buffers[0], buffers[1])

    def test_buffers_of_given_up_requests_stay(self):
        comm = MPI.COMM_SELF.Dup()
        buffer = np.zeros(3)
        request = comm.Irecv(buffer, 0)
        with pytest.raises(RankFailure):
            Patience(deadline=0.02).wait(request, "nobody")
        assert any(kept is request for kept in waiting._kept_alive)
        comm.Isend(np.ones(3), 0).Wait()
        request.Wait()
        np.testing.assert_array_equal(buffer, 1)
