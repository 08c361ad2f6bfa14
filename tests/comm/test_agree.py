"""One rank fails, all raise: who hears what, under real mpirun."""

import json
import socket
from functools import cache
from pathlib import Path

import pytest
from mpi4py import MPI

from fedmpi.comm import Patience, Ranks, agree, control_bytes
from tests import mpi

SCRIPT = Path(__file__).with_name("agreement.py")
HOST = socket.gethostname()
PATIENCE = Patience(deadline=5.0)

on_three_ranks = [pytest.mark.mpi, mpi.needs_mpirun]


@cache
def results() -> dict[str, list[dict]]:
    """Return, for every scenario of agreement.py, what ranks 0, 1 and 2 raised."""
    job = mpi.run(3, [SCRIPT], timeout=200)
    lines = [line for line in job.out.splitlines() if line.startswith("{")]
    assert len(lines) == 1, str(job)
    return json.loads(lines[0])


class TestThreeRanks:
    pytestmark = on_three_ranks

    def test_success_raises_nothing_also_after_failures(self):
        assert [r["type"] for r in results()["nothing"]] == ["nothing"] * 3

    @pytest.mark.parametrize("scenario", ["client_raises", "after_unread_messages"])
    def test_a_client_fails(self, scenario):
        server, other, failed = results()[scenario]
        story = f"training: client 1 on rank 2 ({HOST}): ValueError: boom"
        assert (failed["type"], failed["text"], failed["notes"]) == ("ValueError", "boom", [story])
        for rank in (server, other):
            assert (rank["type"], rank["text"], rank["notes"]) == ("RankFailure", story, [story])

    def test_the_server_fails(self):
        server, *others = results()["server_raises"]
        story = f"training: rank 0 ({HOST}): the disk is full"
        assert (server["type"], server["text"], server["notes"]) == ("DataError", "the disk is full", [story])
        assert [(r["type"], r["text"]) for r in others] == [("RankFailure", story)] * 2

    def test_two_at_once_raise_their_own_and_the_story_is_of_the_first(self):
        server, first, second = results()["two_raise"]
        story = f"training: client 0 on rank 1 ({HOST}): KeyError: 'key 1' (1 more rank failed too)"
        assert (server["type"], server["text"]) == ("RankFailure", story)
        assert (first["type"], first["text"], first["notes"]) == ("KeyError", "'key 1'", [story])
        assert (second["type"], second["text"], second["notes"]) == ("KeyError", "'key 2'", [story])

    def test_a_stop_is_a_stop_everywhere(self):
        for rank in results()["one_stops"]:
            assert (rank["type"], rank["text"], rank["notes"]) == ("Stopped", "SIGUSR1", ["SIGUSR1"])

    def test_a_stop_waits_for_a_rank_in_the_middle_of_a_batch(self):
        """Longer than after a failure: half a second here."""
        server, late, early = results()["one_stops_the_other_later"]
        assert [r["type"] for r in (server, late, early)] == ["Stopped"] * 3
        assert server["seconds"] > 1.5
        assert late["text"] == "SIGUSR1 on rank 1"

    def test_a_failure_outweighs_a_stop(self):
        story = f"training: rank 2 ({HOST}): ValueError: boom"
        server, stopped, failed = results()["one_stops_one_fails"]
        for rank in (server, stopped):
            assert (rank["type"], rank["text"], rank["notes"]) == ("RankFailure", story, [story])
        assert (failed["type"], failed["notes"]) == ("ValueError", [story])

    def test_a_quiet_exit_is_a_failure(self):
        server, failed, other = results()["quiet_exit"]
        assert (failed["type"], failed["text"]) == ("RuntimeError", "sys.exit(0) was called during training")
        story = f"training: client 2 on rank 1 ({HOST}): RuntimeError: sys.exit(0) was called during training"
        assert (server["text"], other["text"]) == (story, story)

    def test_long_texts_are_cut(self):
        server, failed, _ = results()["long_text"]
        assert len(failed["text"]) == 5000
        assert server["type"] == "RankFailure"
        assert 500 < len(server["text"]) <= 2000

    def test_a_failure_is_told_without_waiting_for_those_who_still_work(self):
        server, failed, busy = results()["one_is_busy"]
        assert (failed["type"], server["type"]) == ("ValueError", "RankFailure")
        assert server["text"] == failed["notes"][0] == f"training: client 0 on rank 1 ({HOST}): ValueError: early"
        assert max(server["seconds"], failed["seconds"]) < 3.5 < busy["seconds"]
        assert busy["type"] == "RankFailure"  # nobody speaks to it any more; its own deadline ends it

    def test_at_the_deadline_the_late_one_is_named_to_all_who_came(self):
        server, other, late = results()["one_is_late"]
        story = "no answer within 1 s: training: clients 1, 3 on rank 2 (comm.deadline_s sets the limit)"
        assert [(r["type"], r["text"]) for r in (server, other)] == [("RankFailure", story)] * 2
        assert 1 <= server["seconds"] < 3.5 < late["seconds"]


class TestOneRank:
    @staticmethod
    def divide(ranks):
        with agree(ranks, "s", PATIENCE) as stage:
            stage.enter(1)
            raise ZeroDivisionError("nothing to divide")

    def test_own_error_with_its_place_as_a_note(self):
        ranks = Ranks.create(MPI.COMM_SELF, 2)
        with pytest.raises(ZeroDivisionError, match="nothing to divide") as caught:
            self.divide(ranks)
        assert str(caught.value) == "nothing to divide"
        assert caught.value.__notes__ == ["s: client 1: ZeroDivisionError: nothing to divide"]
        ranks.free()

    def test_success(self):
        ranks = Ranks.create(MPI.COMM_SELF, 2)
        with agree(ranks, "stage", PATIENCE) as stage:
            stage.enter(0)
        assert control_bytes(ranks) == 0
        ranks.free()

    def test_a_person_is_told_which_client_is_worked_on(self):
        seen = []
        ranks = Ranks.create(MPI.COMM_SELF, 2)
        with agree(ranks, "local training", Patience(notice=seen.append)) as stage:
            stage.enter(1)
        assert seen == ["local training: client 1"]
        ranks.free()
