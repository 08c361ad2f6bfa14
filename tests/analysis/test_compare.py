import csv

import _tables as tables
import compare
import numpy as np
import pytest

from tests.analysis import sample


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Two experiments of two seeds each: `wide` scores 0.1 higher in seed 0 and 0.2 in seed 1, and sends more."""
    paths = []
    for name, lr, lifts, kinds in (("narrow", 0.1, (0.0, 0.1), {}), ("wide", 0.2, (0.1, 0.3), {"recovery": True})):
        for seed, lift in enumerate(lifts):
            path = tmp_path_factory.mktemp(f"{name}{seed}") / "run.h5"
            paths.append(sample.write(path, name=name, lr=lr, seed=seed, shift=lift, kinds=kinds))
    return paths


def rows(path):
    with path.open(newline="") as file:
        return [[*r.values()] for r in csv.DictReader(file)]


def test_the_table_in_markdown(four, tmp_path, invoke):
    invoke(compare.main, *four, "--baseline", "narrow", "--metric", "map", "--out", tmp_path, "--format", "md")
    # narrow: market 50, 60 and prid 70, 80; wide: 60, 80 and 80, 100. Bytes: 45160 and 45160 + 6*128 + 3*528 = 47512.
    assert (tmp_path / "compare.md").read_text() == (
        "mAP (%), last evaluation; mean ± sample standard deviation over seeds\n\n"
        "| run | seeds | market | prid | mean | sent (kB) | mean per kB | density "
        "| mean vs narrow (points) | sent vs narrow (%) |\n"
        "| :-- | --: | --: | --: | --: | --: | --: | --: | --: | --: |\n"
        "| narrow | 2 | 55.0 ± 7.1 | 75.0 ± 7.1 | 65.0 ± 7.1 | 45.16 ± 0.00 | 1.44 ± 0.16 | 0.688 ± 0.000 |  |  |\n"
        "| wide | 2 | **70.0 ± 14.1** | **90.0 ± 14.1** | **80.0 ± 14.1** | 47.51 ± 0.00 | 1.68 ± 0.30 | 0.688 ± 0.000 "
        "| +15.0 ± 7.1 | +5.2 ± 0.0 |\n"
    )


def test_the_table_in_latex(four, tmp_path, invoke):
    labelled = [f"a_b={four[0]}", f"c&d={four[2]}"]
    invoke(compare.main, *labelled, "--baseline", "c&d", "--metric", "map", "--out", tmp_path, "--format", "tex")
    text = (tmp_path / "compare.tex").read_text()
    assert text.splitlines()[1:] == [
        r"\begin{tabular}{lrrrrrrrrr}",
        r"\toprule",
        (
            r"run & seeds & market & prid & mean & sent (kB) & mean per kB & density "
            r"& mean vs c\&d (points) & sent vs c\&d (\%) \\"
        ),
        r"\midrule",
        r"a\_b & 1 & 50.0 & 70.0 & 60.0 & 45.16 & 1.33 & 0.688 & $-$10.0 & $-$5.0 \\",
        r"c\&d & 1 & \textbf{60.0} & \textbf{80.0} & \textbf{70.0} & 47.51 & 1.47 & 0.688 &  &  \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_the_table_as_numbers(four, tmp_path, invoke):
    invoke(compare.main, *four, "--baseline", "narrow", "--metric", "map", "--out", tmp_path, "--format", "csv")
    table = {(r[0], r[2], r[3]): r for r in rows(tmp_path / "compare.csv")}
    wide = table["wide", "map", "mean"]
    assert [float(x) for x in wide[4:6]] == pytest.approx([0.8, 0.1 * 2**0.5])
    assert [float(x) for x in wide[7:]] == pytest.approx([0.15, 0.05 * 2**0.5])  # seed by seed: 0.1 and 0.2
    assert [float(x) for x in table["narrow", "bytes", "all"][4:6]] == [45160, 0]
    assert float(table["wide", "bytes", "all"][7]) == 47512 - 45160


def test_seeds_that_differ_are_compared_by_their_means(four, tmp_path, invoke):
    chosen = [four[0], f"wide={four[3]}"]  # seed 0 against seed 1
    invoke(compare.main, *chosen, "--baseline", "narrow", "--metric", "map", "--out", tmp_path, "--format", "csv")
    table = {(r[0], r[2], r[3]): r for r in rows(tmp_path / "compare.csv")}
    assert float(table["wide", "map", "mean"][7]) == pytest.approx(0.9 - 0.6)
    assert table["wide", "map", "mean"][8] == ""


def test_best_or_last(tmp_path, invoke):
    path, writer = sample.write(tmp_path / "run.h5", rounds=0, status="running")
    with writer:
        for t, score in enumerate((0.3, 0.8, 0.6)):
            sample.commit(writer, t, changes={"map": np.array([score, score])})
    for at, cell in (("best", "80.0"), ("last", "60.0")):
        text = invoke(compare.main, path, "--metric", "map", "--at", at, "--out", tmp_path, "--format", "csv")
        line = next(line.split() for line in text.splitlines() if line.startswith("one "))
        assert line[:5] == ["one", "1", cell, cell, cell]


def test_one_name_for_different_experiments_is_refused(tmp_path, invoke):
    paths = [sample.write(tmp_path / f"{lr}" / "run.h5", lr=lr) for lr in (0.1, 0.2)]
    text = invoke(compare.main, *paths, "--out", tmp_path, code=1)
    assert "differ in local.lr, but both are called 'one': name them, as in LABEL=RUN" in text
    text = invoke(compare.main, f"x={paths[0]}", f"x={paths[1]}", "--out", tmp_path)
    assert "differ in local.lr, and are averaged as 'x'" in text


def test_the_same_run_twice_is_refused(run_file, tmp_path, invoke):
    text = invoke(compare.main, run_file, run_file.parent, "--out", tmp_path, code=1)
    assert "given twice" in text


def test_other_clients_are_refused(run_file, tmp_path, invoke):
    other = sample.write(tmp_path / "run.h5", names=("market", "duke"), name="two")
    text = invoke(compare.main, run_file, other, "--out", tmp_path, code=1)
    assert "do not have the same clients: duke, prid" in text


def test_clients_in_another_order_are_matched_by_name(run_file, tmp_path, invoke):
    other = sample.write(tmp_path / "run.h5", names=("prid", "market"), name="two")
    invoke(compare.main, run_file, other, "--metric", "map", "--out", tmp_path, "--format", "csv")
    table = {(r[0], r[3]): float(r[4]) for r in rows(tmp_path / "compare.csv") if r[2] == "map"}
    assert table["one", "market"] == 0.5
    assert table["two", "market"] == 0.7


def test_an_unknown_baseline_gets_the_list(run_file, tmp_path, invoke):
    text = invoke(compare.main, run_file, "--baseline", "dense", "--out", tmp_path, code=2)
    assert "no run is called 'dense'; there are one" in text


def test_runs_of_unequal_length_are_mentioned(run_file, tmp_path, invoke):
    other = sample.write(tmp_path / "run.h5", rounds=2, name="two", status="failed", error="disk full")
    text = invoke(compare.main, run_file, other, "--out", tmp_path)
    assert "2, 3 rounds" in text
    assert "is failed, not finished" in text


@pytest.mark.parametrize(
    ("cell", "latex"),
    [
        ("50 %", r"50 \%"),
        ("a_b & c#1 $x {y}", r"a\_b \& c\#1 \$x \{y\}"),
        ("~^\\", r"\textasciitilde{}\textasciicircum{}\textbackslash{}"),
        ("-1.5 ± 0.2", r"$-$1.5 $\pm$ 0.2"),
        ("rank-1", "rank-1"),
        ("--", "--"),
    ],
)
def test_latex_takes_every_character_literally(cell, latex):
    assert tables.escaped(cell) == latex


def test_cells():
    assert tables.spread(np.array([1.0, 3.0])) == "2.0 ± 1.4"
    assert tables.spread(np.array([1.0, np.nan])) == "1.0"
    assert tables.spread(np.array([np.nan])) == "--"
    assert tables.spread(np.array([-0.25]), 2, signed=True) == "-0.25"
