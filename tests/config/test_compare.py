"""Which keys keep a run from being resumed."""

import pytest

from fedmpi.config import RunConfig, differences, to_yaml


def test_the_same_and_output_only_keys_are_no_difference(tiny_config):
    written = to_yaml(tiny_config())
    assert differences(written, tiny_config()) == []
    assert differences(written, tiny_config("run.name=other", "checkpoint.every=9", "record.flush_rounds=4")) == []


def test_how_values_travel_may_change_and_what_is_done_with_them_may_not(tiny_config):
    written = to_yaml(tiny_config())
    plans = (
        "comm.uplink=sharded",
        "comm.downlink=shared",
        "comm.segment_mb=1",
        "comm.deadline_s=9",
        "comm.poll_max_us=99",
    )
    assert differences(written, tiny_config(*plans)) == []
    assert tiny_config(*plans).digest() != tiny_config().digest()  # ranks must agree on them all the same
    nodes = tiny_config("comm.uplink=hierarchical")  # of which the last bits depend
    assert differences(written, nodes) == ["comm.uplink: messages then, hierarchical now"]
    assert differences(to_yaml(nodes), tiny_config()) == ["comm.uplink: hierarchical then, messages now"]
    assert differences(to_yaml(nodes), nodes) == []
    bounded = tiny_config("comm.bad_update=skip", "comm.norm_limit=7")
    assert len(differences(written, bounded)) == 2


def test_every_difference_is_named_with_both_values(tiny_config):
    changed = tiny_config("run.seed=1", "federation.rounds=9", "local.augment.pad=3", "data.clients=[prid]")
    assert differences(to_yaml(tiny_config()), changed) == [
        "run.seed: 0 then, 1 now",
        "data.clients: ['prid', 'ilids'] then, ['prid'] now",
        "federation.rounds: 2 then, 9 now",
        "local.augment.pad: 2 then, 3 now",
    ]


def test_a_key_that_an_older_version_did_not_have_counts_as_its_default():
    lines = to_yaml(RunConfig()).splitlines()
    older = "\n".join(line for line in lines if not line.startswith("  temperature:"))
    assert older.count("\n") < len(lines) - 1
    assert differences(older, RunConfig()) == []


@pytest.mark.parametrize("written", ["", "just words"])
def test_text_that_is_no_mapping_counts_as_the_defaults(written):
    assert differences(written, RunConfig()) == []


def test_a_key_that_is_no_more_is_a_difference():
    assert differences(to_yaml(RunConfig()) + "old: {key: 1}\n", RunConfig()) == ["old.key: 1 then, absent now"]
