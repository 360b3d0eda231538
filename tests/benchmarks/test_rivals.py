"""The benchmark of rivals: its tuning, its files, its page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.cells import Cell, measured, read
from benchmarks.grids import GRIDS, Grid
from benchmarks.methods import METHODS
from benchmarks.methods.base import NO_CHANGE, ROUNDS, Case, Rival, Tool, answered, contexts, nearby, predictor, tuned
from benchmarks.rivals_page import BEGIN, BOUND, END, OURS, half_width, load, tables
from benchmarks.tasks import check_case

from benchmarks import cells, grids, runner
from tests.cases import small_data, small_net
from tests.stage_cases import memorised, with_run
from verifix.model.borrow import borrowed
from verifix.model.clone import copy_model
from verifix.model.folds import split_folds
from verifix.model.samples import read_samples
from verifix.recipe.candidates import Listed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def one_thread():
    """What small cells are measured with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def case():
    torch.manual_seed(0)
    x, y = small_data(60)
    model = memorised(small_net(), x, y)
    samples = read_samples((x, y))
    return Case(model, samples, samples, y, tuple(range(10)), lambda _: model, 3)


class Shifted(Rival):
    """Adds its setting to the bias of class 0, and notes which samples it was fitted on."""

    name = "shifted"
    settings = (0.0, 0.5, 50.0)
    neighbours_of: dict = {}  # noqa: RUF012
    fits: list = []  # noqa: RUF012

    def candidates(self):
        return Listed(tuple((s,) for s in self.settings))

    def neighbours(self, best):
        return [(s,) for s in self.neighbours_of.get(best[0], ())]

    def fit(self, strength):
        self.fits.append((strength, tuple(self.context.indices)))
        name = [name for name, _ in self.context.run.model.named_parameters()][-1]
        bias = self.context.writable(name)
        bias[0] += strength[0]
        return {name: bias}


def shifting(**settings) -> type[Shifted]:
    """Shifted with other settings, and fits of its own."""
    return type("Shifted", (Shifted,), {"fits": [], **settings})


def test_each_setting_is_scored_on_folds_that_its_fits_have_not_seen(case):
    method, model = shifting(), copy_model(case.model)
    with borrowed(model):
        answer = tuned(method, case, model)
    folds = [tuple(sorted(map(int, fold))) for fold in split_folds(case.verified, 5, 0)]
    everything = tuple(range(60))
    expected = [(s,) for s in method.settings]
    for fold in folds:
        rest = tuple(i for i in everything if i not in fold)
        assert [s for s, own in method.fits if own == rest] == expected
    assert answer.chosen == NO_CHANGE  # a shift of 0 is as good, and no better
    x = torch.stack([case.verified.source.dataset[i][0] for i in everything])
    with torch.no_grad():
        logits = case.model(x).double()
    assert [setting.strength for setting in answer.tried] == [NO_CHANGE, *expected]
    for setting in answer.tried:
        shift = 0.0 if setting.strength == NO_CHANGE else setting.strength[0]
        shifted = logits + torch.tensor([shift, 0, 0])
        right = 100 * float((shifted.argmax(1) == case.verified.labels).double().mean())
        assert setting.accuracy == pytest.approx(right)


def test_the_least_loss_on_held_out_samples_wins_and_is_fitted_on_all(case):
    skewed = replace(case, model=copy_model(case.model))
    with torch.no_grad():
        list(skewed.model.parameters())[-1][0] -= 3.0  # so that a shift helps
    method, model = shifting(settings=(50.0, 0.5, 3.0)), copy_model(skewed.model)
    with borrowed(model):
        answer = tuned(method, skewed, model)
    losses = [setting.loss for setting in answer.tried]
    assert answer.tried[losses.index(min(losses))].strength == answer.chosen == (3.0,)
    assert method.fits[-1] == ((3.0,), tuple(range(60)))


def test_neighbours_of_the_best_are_tried_until_none_is_better(case):
    skewed = replace(case, model=copy_model(case.model))
    with torch.no_grad():
        list(skewed.model.parameters())[-1][0] -= 3.0
    near = {0.5: (0.25, 1.0), 1.0: (0.5, 2.0), 2.0: (1.0, 3.0), 3.0: (2.0, 90.0), -5.0: (7.0,)}
    method, model = shifting(settings=(-5.0, 0.5), neighbours_of=near), copy_model(skewed.model)
    with borrowed(model):
        answer = tuned(method, skewed, model)
    assert [setting.strength for setting in answer.tried] == [
        NO_CHANGE,
        *((s,) for s in (-5.0, 0.5, 0.25, 1.0, 2.0, 3.0, 90.0)),
    ]
    near = {0.02 * 2**i: (0.02 * 2 ** (i + 1),) for i in range(8)}
    method = shifting(settings=(0.01, 0.02), neighbours_of=near)
    with borrowed(model):
        answer = tuned(method, skewed, model)
    assert len(answer.tried) == 3 + ROUNDS


@pytest.mark.parametrize(
    ("value", "settings", "expected"),
    [
        ((1e-3, 10**0.5), {}, [3.2e-4, 3.2e-3]),
        ((3.2e-3, 10**0.5), {}, [1e-3, 1e-2]),
        ((3.2e-3, 10**0.5), {"highest": 9e-3}, [1e-3]),
        ((7.0, 4), {"lowest": 1, "whole": True}, [2.0, 28.0]),
        ((1.0, 4), {"lowest": 1, "whole": True}, [4.0]),
        ((1.0, 1.2), {"lowest": 1, "whole": True}, []),
    ],
)
def test_numbers_nearby_lie_on_either_side_within_bounds(value, settings, expected):
    assert nearby(*value, **settings) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHODS.keys() - {*OURS, "nothing", "retrain", "published_oracle"}))
def test_no_fit_reads_the_samples_that_it_is_scored_on(case, name):
    given = torch.where(torch.arange(60) % 4 == 0, (case.truth + 1) % 3, case.truth)
    x = torch.stack([case.verified.source.dataset[i][0] for i in range(60)])
    case = replace(case, training=read_samples((x + 0.1, given)), checked=tuple(range(30)))
    model = copy_model(case.model)
    found = []
    with borrowed(model), torch.no_grad():
        part = contexts(case, model)[1][2]
        held_out = list(part.outside)
        strengths = METHODS[name].make(case, part).candidates().strengths
        inputs, labels = x.clone(), case.verified.labels.clone()
        for _ in range(2):
            samples = read_samples((inputs.clone(), labels.clone()))
            method = METHODS[name].make(case, with_run(part, samples=samples))
            fits = [method.fit(strength) for strength in strengths]
            found.append(torch.stack([predictor(model, fit)(case.training, range(60)) for fit in fits]))
            inputs[held_out] = 100 * torch.randn(len(held_out), x.shape[1])
            labels[held_out] = (labels[held_out] + 1) % 3
    assert torch.equal(*found)


def test_the_folds_are_those_of_the_tool(case):
    model = copy_model(case.model)
    with borrowed(model), torch.no_grad():
        whole, parts = contexts(case, model)
    assert [list(map(int, fold)) for fold in split_folds(case.verified, 5, case.seed)] == list(whole.run.members)
    assert [sorted(set(range(60)) - set(part.indices)) for part in parts] == [sorted(m) for m in whole.run.members]


def test_what_a_method_runs_is_counted_and_the_network_stays_as_it_was(case):
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    answer = answered(Shifted, case)
    # One sample and then two to find the layers, and every sample once without change and once per setting.
    assert answer.runs == 3 + (1 + 3) * 60
    assert all(torch.equal(before[name], value) for name, value in case.model.state_dict().items())
    assert answered(Tool("verifix"), case).chosen.keys() == {"project"}


def test_every_method_tries_eight_settings_or_has_none_to_set():
    for cell, record in load(GRIDS, ROOT / cells.FOLDER).items():
        if not isinstance(METHODS[cell.method].make, Tool) and not record["obstacle"]:
            assert len(record["tried"]) >= 1 + 8 or not record["tried"], cell
            if record["tried"]:
                strengths = [setting["strength"] for setting in record["tried"]]
                assert strengths.count(record["chosen"]) == strengths.count(NO_CHANGE) == 1, cell
                assert len({str(strength) for strength in strengths}) == len(strengths), cell


def test_files_are_named_by_what_is_in_them():
    records = load(GRIDS, ROOT / cells.FOLDER)
    assert records
    for cell, record in records.items():
        assert cell == Cell(*(record[name] for name in Cell.__dataclass_fields__))
    there = set((ROOT / cells.FOLDER).rglob("*.json"))
    assert there == {cell.path(ROOT / cells.FOLDER) for cell in records}


def test_all_methods_of_a_network_saw_the_same_samples():
    groups: dict = {}
    for cell, record in load(GRIDS, ROOT / cells.FOLDER).items():
        key = (*cell.network, cell.verified)
        groups.setdefault(key, set()).add((record["model_sha256"], record["verified_sha256"], record["unseen_sha256"]))
    assert {len(found) for found in groups.values()} == {1}


def test_the_page_is_made_from_the_files():
    page = (ROOT / "docs/rivals.md").read_text(encoding="utf-8")
    inside = page.split(BEGIN)[1].split(END)[0].strip()
    assert inside == tables(GRIDS, load(GRIDS, ROOT / cells.FOLDER))


def rounded(value):
    """The same as JSON has it, to nine digits: a sum may be added up in another order."""
    return json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.9g}"))


def test_a_cell_of_the_digits_comes_out_again(one_thread):
    cell = Cell("digits", "mlp", "symmetric", 0.3, 200, 10, "head_refit")
    found, there = measured(cell), read(cell.path(ROOT / cells.FOLDER))
    if found["model_sha256"] == there["model_sha256"]:
        for key in ("before", "after", "chosen", "tried", "verified_sha256", "unseen_sha256", "transition_matrix"):
            assert rounded(found[key]) == rounded(there[key]), key
    else:  # another processor rounds otherwise, and the network is another one
        assert found["verified_sha256"] == there["verified_sha256"]
        assert found["after"] == pytest.approx(there["after"], abs=3)


def test_on_clean_labels_the_tool_answers_no_change_or_loses_next_to_nothing():
    found = [
        record
        for cell, record in load(GRIDS, ROOT / cells.FOLDER).items()
        if cell.rate == 0 and cell.method in ("auto", "verifix")
    ]
    assert len({record["task"] for record in found}) > 1
    assert max(record["before"] - record["after"] for record in found) <= 0.3


def test_a_run_that_was_stopped_goes_on_and_again_counts_another_look(tmp_path, monkeypatch, capsys):
    tiny = {"digits": (Grid("tiny", "digits", "mlp", (("symmetric", 0.3),), (50,), (0,), ("nothing", "knn", "rog")),)}
    monkeypatch.setattr(runner, "GRIDS", tiny)
    monkeypatch.chdir(tmp_path)
    words = ["run", "digits", "--workers", "1", "--cache", str(tmp_path / "cache")]
    assert runner.main([*words, "--methods", "nothing"]) == 0
    (first,) = tmp_path.rglob("nothing.json")
    stamp = first.stat().st_mtime_ns

    def broken(*_):
        raise RuntimeError("no neighbours here")

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.methods.knn.NearestNeighbours.fit", broken)
        assert runner.main(words) == 1
    said = capsys.readouterr().err
    assert "knn: RuntimeError: no neighbours here" in said
    assert "1 of 2 cells failed and are absent" in said
    assert not list(tmp_path.rglob("knn.json"))  # absent, and not a result
    assert first.stat().st_mtime_ns == stamp
    assert runner.main(words) == 0
    assert len(list(tmp_path.rglob("knn.json"))) == 1
    assert runner.main([*words, "--methods", "nothing", "--again"]) == 0
    assert read(first)["looks_at_unseen"] == 2


def test_what_is_absent_cannot_run_or_lacks_seeds_is_shown_as_such():
    grid = Grid("Kinds", "digits", "mlp", (("symmetric", 0.3),), (200,), (0, 1), ("nothing", "knn", "rog", "retrain"))
    costs = {"seconds": 1.0, "runs": 10, "peak_gigabytes": None, "looks_at_unseen": 1}

    def cell(seed, method):
        return Cell("digits", "mlp", "symmetric", 0.3, 200, seed, method)

    records = {
        cell(0, "nothing"): costs | {"after": 80.0},
        cell(1, "nothing"): costs | {"after": 82.0},
        cell(0, "knn"): costs | {"after": 85.0},
        cell(0, "rog"): costs | {"after": None},
        cell(0, "retrain"): costs | {"after": 99.0},
        cell(1, "retrain"): costs | {"after": 99.0},
    }
    text = tables({"digits": (grid,)}, records)
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[2] for line in text.splitlines() if line[:1] == "|"}
    assert rows[METHODS["nothing"].title] == "**80.0 / 82.0**"
    assert rows[METHODS["knn"].title] == "85.0 (1 of 2)"  # not compared with means of two
    assert rows[METHODS["rog"].title] == "cannot"
    assert rows[METHODS["retrain"].title] == "99.0 / 99.0"  # the bound is not compared
    assert "6 of 8 table entries" in text
    assert "retrain" in BOUND
    assert "absent" in tables({"digits": (grid,)}, {cell(0, "knn"): records[cell(0, "knn")]})


def test_the_tool_is_ahead_or_behind_where_paired_differences_say_so():
    accuracies = {
        "nothing": [50.0, 60.0, 70.0],
        "verifix": [95.0, 95.0, 95.0],  # the tool itself is none of the others
        "auto": [70.0, 80.0, 90.5],
        "knn": [68.0, 77.9, 88.6],  # by about 2 points with every seed
        "rog": [90.0, 50.0, 70.0],
        "head_refit": [72.0, 82.1, 92.4],
        "auto_noisy": [91.0, 52.2, 71.9],
        "retrain": [99.0, 99.0, 99.0],
    }
    costs = {"seconds": 1.0, "runs": 10, "peak_gigabytes": None, "looks_at_unseen": 1}

    def text(*methods, more=()):
        grid = Grid("Kinds", "digits", "mlp", (("symmetric", 0.3),), (200,), (0, 1, 2), methods)
        own = (grid, replace(grid, methods=more)) if more else (grid,)
        cells = [cell for each in own for cell in each.cells()]
        records = {cell: costs | {"after": accuracies[cell.method][cell.seed], "before": 50.0} for cell in cells}
        return tables({"digits": own}, records)

    shown = text("nothing", "verifix", "auto", "knn", "rog", "retrain")
    assert "Of 1 comparisons, verifix is ahead in 1 and behind in 0. In the other 0," in shown  # RoG needs more
    half = half_width([2.0, 2.1, 1.9])
    assert (
        f"| digits, mlp, symmetric 30%, 200 verified | 80.2 | 78.2, nearest neighbours | +2.0 ± {half:.1f} |" in shown
    )
    only, given = "verified samples only", "training inputs and their given labels"
    assert f"| no change | {only} | 1 | 1 | 0 | 0 | +20.2 | +20.2 |" in shown
    assert f"| verifix | {only} | 1 | 0 | 0 | 1 | -14.8 | -14.8 |" in shown
    assert f"| robust generative head (RoG) | {given} | 1 | 0 | 0 | 1 | +10.2 | +10.2 |" in shown
    assert METHODS["retrain"].title not in shown.split("## digits, mlp: kinds")[0]
    assert "Of 1 comparisons, verifix is ahead in 0 and behind in 1" in text("nothing", "auto", "knn", "head_refit")
    assert "Of 0 comparisons" in text("nothing", "verifix", "auto")
    both = text("nothing", "auto", "knn", more=("nothing", "auto", "head_refit"))  # compared once, where it is first
    assert "Of 1 comparisons, verifix is ahead in 1 and behind in 0" in both
    assert "auto_noisy" not in shown.split("## digits, mlp: kinds")[0]


def test_each_form_of_the_tool_is_compared_with_what_needs_no_more():
    accuracies = {
        "nothing": [50.0, 60.0, 70.0],
        "auto": [80.0, 80.0, 80.0],
        "auto_unlabelled": [82.0, 82.0, 82.0],
        "auto_noisy": [84.0, 84.0, 84.0],
        "knn": [75.0, 75.1, 75.2],
        "colur": [81.0, 81.1, 81.2],
        "rog": [83.0, 83.1, 83.2],
        "scrub": [98.0, 98.0, 98.0],  # knows checked labels besides
    }
    costs = {"seconds": 1.0, "runs": 10, "peak_gigabytes": None, "looks_at_unseen": 1, "before": 50.0}
    grid = Grid("Kinds", "digits", "mlp", (("symmetric", 0.3),), (200,), (0, 1, 2), tuple(accuracies))
    records = {cell: costs | {"after": accuracies[cell.method][cell.seed]} for cell in grid.cells()}
    sections = tables({"digits": (grid,)}, records).split("## digits, mlp: kinds")[0].split("### ")[1:]
    assert [section.splitlines()[0].split(": ")[1] for section in sections] == [
        "`auto`",
        "`auto_unlabelled`",
        "`auto_noisy`",
    ]
    for section, title, ours in zip(
        sections, ("nearest neighbours", "COLUR", "robust generative head (RoG)"), (80, 82, 84), strict=True
    ):
        assert f"200 verified | {ours}.0 | {accuracies_of(title, accuracies)}, {title} |" in section
        assert "| SCRUB | training samples whose labels were checked | 1 | 0 | 1 | 0 |" in section


def accuracies_of(title, accuracies):
    (name,) = (name for name, entry in METHODS.items() if entry.title == title)
    return f"{sum(accuracies[name]) / 3:.1f}"


def test_every_table_says_its_noise_and_its_number_of_samples():
    for noises, sizes, head, row in (
        ((("symmetric", 0.3),), (50, 1000), "; symmetric 30%, one seed.", "| needs | 50 verified | 1,000 verified |"),
        ((("human", 0.1), ("symmetric", 0.3)), (50,), "; 50 verified, one seed.", "| human 10% | symmetric 30% |"),
        ((("symmetric", 0.3),), (50,), "; 50 verified, one seed.", "| method | needs | symmetric 30% | seconds"),
        ((("human", 0.1), ("symmetric", 0.3)), (50, 90), "in percent; one seed.", "| human 10%, 50 verified |"),
    ):
        text = tables({"cifar10": (Grid("A few", "cifar10", "resnet", noises, sizes, (0,), ("nothing",)),)}, {})
        assert head in text
        assert row in text


def test_the_interval_of_a_mean_is_that_of_student():
    from scipy.stats import ttest_1samp

    values = [80.0, 81.5, 86.0]
    low, high = ttest_1samp(values, 0).confidence_interval()
    assert half_width(values) == pytest.approx((high - low) / 2)


def test_grids_name_only_what_there_is():
    for task, own in grids.GRIDS.items():
        for grid in own:
            assert grid.task == task
            for cell in grid.cells():
                check_case(task, cell.architecture, cell.noise, cell.rate, cell.verified, cell.seed, ROOT)
                assert cell.method in METHODS
