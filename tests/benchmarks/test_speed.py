"""The benchmark of speed: turns, ratios and pages by hand, and one tiny run of each part."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from benchmarks.speed import floor, memory, page, plots, ranks, record, scaling, stages, strengths
from benchmarks.speed.__main__ import PARTS, main, measure
from benchmarks.speed.problems import chain, problem
from benchmarks.speed.rounds import Case, Ready, growth, guesses_of, measured, median, order, ratios, timed

from verifix.correction import Correction
from verifix.progress import progress_bar
from verifix.recipe.decision import Choice, Point
from verifix.recipe.paths import Path as TriedPath

ROOT = Path(__file__).resolve().parents[2]


def of_seconds(*values):
    return [{"seconds": value} for value in values]


def test_every_contender_is_first_once_in_as_many_rounds():
    contenders = ["a", "b", "c"]
    orders = [order(contenders, number) for number in range(3)]
    assert [first for first, *_ in orders] == contenders
    assert all(sorted(own) == contenders for own in orders)


def test_contenders_take_turns_and_some_only_in_the_first_rounds():
    ran = []
    run = {name: lambda name=name: ran.append(name) or {"seconds": 1.0} for name in "abc"}
    case = Case("case", dict.fromkeys("abc", 2.0), lambda: Ready(run, {"n": 3}, lambda: {"after": len(ran)}), {"c": 1})
    with progress_bar("test", 10, show=False) as bar:
        found = measured(case, 2, guesses_of(case, {}), bar)
    assert ran == ["a", "b", "c", "b", "a"]
    assert found["about"] == {"n": 3, "after": 5}
    assert {name: len(own) for name, own in found["runs"].items()} == {"a": 2, "b": 2, "c": 1}


def test_an_earlier_measurement_is_the_best_guess():
    case = Case("case", {"a": 2.0, "b": 3.0}, Ready)
    assert guesses_of(case, {}) == {"a": 2.0, "b": 3.0}
    earlier = {"case": {"runs": {"a": of_seconds(10.0, 30.0, 11.0), "b": []}}}
    assert guesses_of(case, earlier) == {"a": 11.0, "b": 3.0}


def test_medians_and_ratios_of_rounds():
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5
    assert ratios(of_seconds(6.0, 8.0, 9.0), of_seconds(2.0, 2.0)) == [3.0, 4.0]


def test_growth_is_the_exponent_of_a_power_law():
    assert growth([1, 2, 4, 8], [3 * n**1.5 for n in (1, 2, 4, 8)]) == pytest.approx(1.5)
    assert growth([10, 1000], [7.0, 7.0]) == pytest.approx(0.0)


def test_a_spread_has_median_and_range():
    assert page.spread([3.0, 1.0, 20.0]) == "3.00 (1.00 to 20.0)"
    assert page.spread([0.01234]) == "0.0123"
    assert page.spread([2345.6]) == "2,346"
    assert page.spread([0.0]) == "0"
    assert page.spread([]) == ""


def test_the_floor_adds_the_multiplications_at_the_measured_rate():
    work = 3.0 * floor.SIDE**3  # three products, of which each takes half as long as a forward pass
    case = {
        "about": {"moments_multiplications": work},
        "runs": {"forward": of_seconds(2.0, 4.0), "product": of_seconds(1.0, 2.0)},
    }
    assert page.floors(case) == pytest.approx([2.5, 2.5])


def test_the_multiplications_of_moments_are_half_of_the_product_and_none_for_kept_rows():
    model = chain(20, 1)
    of = {n: floor.multiplications(model, samples_of(n, 20)) for n in (10, 40)}
    assert of == {10: 0, 40: 2 * 40 * 20 * 21 / 2}


def samples_of(count, width):
    from verifix.model.samples import read_samples

    return read_samples((torch.randn(count, width), torch.arange(count) % 10))


def test_shares_are_of_the_whole_time():
    runs = [{"seconds": 10.0, "stages": {"project": 5.0, "refit": 1.0}}, {"seconds": 20.0, "stages": {"project": 10.0}}]
    assert stages.shares(runs) == pytest.approx({"project": 50.0, "refit": 5.0, "the rest": 45.0})


def test_the_time_of_a_stage_is_that_of_all_paths_that_end_with_it():
    project, refit = Choice(1.0, (), "", seconds=3.0), Choice(1.0, (), "", seconds=4.0)
    alone = Correction({}, {}, {"project": project}, (), {})
    assert stages.stage_seconds(alone) == {"project": 3.0}
    point = Point(None, 0.0, 0.0, 0.0, 0.5)
    paths = [
        TriedPath({}, point),
        TriedPath({"project": 1.0}, point, seconds=3.0),
        TriedPath({"project": 1.0, "refit": 1.0}, point, seconds=4.0),
        TriedPath({"refit": None}, None, "worse", 5.0),
    ]
    searched = Correction({}, {}, {"project": project, "refit": refit}, (), {}, paths=tuple(paths))
    assert stages.stage_seconds(searched) == {"project": 3.0, "refit": 9.0}


def test_the_best_setting_is_the_median_of_what_folds_chose(tmp_path):
    for seed, chosen, runs in ((0, [0.1, 4.0], 1000), (1, [0.2, 16.0], 3000), (2, [0.3, 16.0], 2000), (3, None, 9)):
        cell = tmp_path / "task" / f"seed-{seed}" / "finetuning.json"
        cell.parent.mkdir(parents=True)
        cell.write_text(json.dumps({"chosen": chosen, "runs": runs, "verified": 100}))
    assert stages.best_setting("task", tmp_path) == stages.Best(0.2, 16, 20.0)
    with pytest.raises(SystemExit, match=r"no fine-tuning was chosen in .*none"):
        stages.best_setting("none", tmp_path)
    for network in (stages.DIGITS, stages.VGG, stages.FEW_VGG):
        assert stages.best_setting(network.cells, ROOT / "benchmarks/results/cells").passes > 1


def test_fine_tuning_runs_some_passes_and_counts_them_all():
    case = problem("tiny", 40)
    before = [parameter.clone() for parameter in case.model.parameters()]
    found = stages.finetuned(case, stages.Best(0.01, 6, 0.0), 2)
    assert found["timed"] == 2
    assert found["seconds"] > 0
    assert all(map(torch.equal, before, case.model.parameters()))


def test_differences_are_of_the_largest_tensor():
    one = {"a": torch.ones(4), "b": torch.full((4,), 2.0)}
    assert ranks.difference(one, {"a": torch.ones(4), "b": torch.full((4,), 2.2)}) == pytest.approx(0.1)
    assert ranks.difference(one, {"a": torch.ones(4)}) == float("inf")
    assert ranks.difference({}, {}) is None


TINY = {
    "floor": [floor.case_of("tiny", "tiny", 32)],
    "stages": [
        stages.case_of(
            stages.Network("tiny", "tiny", 60, stages.DIGITS.cells, dict.fromkeys(stages.FEW_VGG.guess, 1.0)), 1
        )
    ],
    "strengths": [strengths.case_of("tiny", 60)],
    "scaling": [
        Case(
            "layers",
            {"1": 1.0, "2": 1.0},
            lambda: Ready(
                {str(k): lambda k=k: scaling.work(problem(f"chain-16x{k}", 64)) for k in (1, 2)},
                {"alpha": scaling.ALPHA},
            ),
        )
    ],
    "ranks": [ranks.case_of("tiny", 60, "float64", processes=(1, 2))],
    "memory": [],
}


@pytest.fixture(scope="module")
def measured_parts(tmp_path_factory):
    """Every part but the memory of large networks, in a tiny form, in one file."""
    import os

    out = tmp_path_factory.mktemp("speed") / "speed.json"
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{ROOT}")
            measure([(part, case) for part, own in TINY.items() for case in own], 1, out)
    finally:
        os.chdir(before)
    return record.read(out)


def test_a_tiny_run_of_each_part(measured_parts):
    assert measured_parts.keys() == {part for part, own in TINY.items() if own}
    for part, own in TINY.items():
        for case in own:
            found = measured_parts[part][case.name]
            assert found["runs"].keys() == case.guess.keys()
            assert all(run["seconds"] > 0 for runs in found["runs"].values() for run in runs)
            assert found["environment"]["processors"] >= 1


def test_both_ways_and_all_numbers_of_processes_agree(measured_parts):
    (found,) = measured_parts["strengths"].values()
    assert found["about"]["compared"] == 3
    assert max(found["about"]["differences"]) < 1e-4
    (found,) = measured_parts["ranks"].values()
    assert found["about"]["differences"]["2"] <= 1e-10


def test_the_page_says_what_was_measured(measured_parts, tmp_path):
    text = page.sections(measured_parts, {})
    for title, _ in page.PARTS.values():
        assert f"### {title}" in text
    assert text.count("Not measured yet.") == 2  # the memory of large networks, and the busy machine
    assert "128 passes over the 60 samples at rate 0.0032" in text
    assert "| grows like |" in text
    for name, draw in plots.of(measured_parts):
        path = tmp_path / "new" / name
        draw(path)
        first = path.read_bytes()
        draw(path)
        assert path.read_bytes() == first
        assert f"](images/{name})" in text


def test_a_case_takes_the_place_of_the_same_one_and_leaves_the_others(tmp_path):
    out = tmp_path / "build" / "speed.json"
    for value in (1.0, 2.0):
        case = Case("one", {"a": 1.0}, partial(Ready, {"a": lambda value=value: {"seconds": value}}))
        measure([("floor", case)], 1, out)
    other = Case("other", {"a": 1.0}, partial(Ready, {"a": lambda: timed(list)}))
    measure([("memory", other), ("floor", other)], 2, out)
    found = record.read(out)
    assert found["floor"]["one"]["runs"]["a"] == [{"seconds": 2.0}]
    assert len(found["memory"]["other"]["runs"]["a"]) == len(found["floor"]["other"]["runs"]["a"]) == 2


def test_what_cannot_be_run_is_refused(capsys):
    for words in (["--only", "floors"], ["--rounds", "0"], ["--cases", "nothing like it"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
    assert "no case has 'nothing like it' in its name" in capsys.readouterr().err


@pytest.mark.parametrize("quick", [False, True])
def test_names_of_cases_are_their_own_and_guesses_are_positive(quick):
    for cases in PARTS.values():
        found = cases(quick=quick)
        assert len({case.name for case in found}) == len(found)
        assert all(guess > 0 for case in found for guess in case.guess.values())


def test_the_quick_run_stays_below_ten_minutes_by_its_guesses():
    total = sum(
        guess * case.rounds_of(name, 2)
        for of in PARTS.values()
        for case in of(quick=True)
        for name, guess in case.guess.items()
    )
    assert total < 450


def test_the_page_is_that_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    copy = tmp_path / "performance.md"
    copy.write_text((ROOT / page.PAGE).read_text("utf-8"), "utf-8")
    page.write_page(copy)
    assert copy.read_text("utf-8") == (ROOT / page.PAGE).read_text("utf-8")


def test_memory_is_measured_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setitem(
        memory.NETWORKS, "tiny", memory.Network(lambda: problem("tiny", 8).model, 20, (3, 8, 8), 5, guess=1.0)
    )
    found = memory.measure(memory.NETWORKS["tiny"])
    assert found["corrected"] == 3
    assert found["beyond"] >= 0
    assert found["planned"] > 0
