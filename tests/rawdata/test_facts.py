"""The table of facts against the numbers of FedReID's and FedCAPR's tables, typed a second time, and in itself."""

import pytest

from fedmpi.errors import DataError
from fedmpi.rawdata.facts import FACTS, fact, fact_of_client
from fedmpi.reid.layouts import BENCHMARKS

PUBLISHED = """
duke                8   702 16522   702  2228  1110 17661
market              6   751 12936   750  3368   751 19732
cuhk03-np-detected  2   767  7365   700  1400   700  5332
cuhk03-np-labeled   2   767  7368   700  1400   700  5328
prid                2   285  3744   100   100   649   649
cuhk01              2   485  1940   486   972   486   972
viper               2   316   632   316   316   316   316
3dpes               2    93   450    86   246   100   316
ilids               2    59   248    60    98    60   130
ilids-vid           2   150   300   150   150   150   150
msmt17             15  1041 32621  3060 11659  3060 82161
"""


@pytest.mark.parametrize("line", PUBLISHED.split("\n")[1:-1])
def test_published_counts(line):
    name, *numbers = line.split()
    entry = fact(name)
    counts = [n for c in entry.counts().values() for n in (c.identities, c.images)]
    assert [entry.cameras, *counts] == [int(n) for n in numbers]


def test_names_find_their_set_and_only_theirs():
    names = [n for entry in FACTS for n in {entry.name, entry.client.lower(), *entry.aliases}]
    assert len(names) == len(set(names))
    for entry in FACTS:
        assert fact(entry.name.upper()) is entry
        assert all(fact_of_client(n) is entry for n in (entry.client, *entry.aliases))
    assert fact_of_client("my own cameras") is None
    with pytest.raises(DataError, match="dataset 'marget' is unknown; there are duke, market"):
        fact("marget")


def test_every_set_says_where_it_comes_from_and_under_which_terms():
    for entry in FACTS:
        assert min(map(len, (entry.raw, entry.camera_rule, entry.split_rule, entry.citation, entry.obtain))) > 10
        assert len(entry.terms) > 10
    assert "withdrawn" in fact("duke").obtain
    assert "http" not in fact("duke").obtain


def test_clients_come_in_the_order_of_the_tables():
    known = [entry.client.lower() for entry in FACTS if entry.client.lower() in BENCHMARKS]
    assert known == sorted(known, key=BENCHMARKS.index)
    assert len(known) == 9
