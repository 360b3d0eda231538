"""Which samples are selected: by slow oracles, in one round or several, after kills, and in several formats."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import nn

import verifix
from benchmarks import strategies
from tests.deadly import Counted, killed
from tests.record_cases import record, write
from verifix.errors import DataError, UsageError
from verifix.io.data.records import VERIFIED, Header, Record, spelled
from verifix.io.data.verified import read_decisions
from verifix.model import reading
from verifix.selection import spreading
from verifix.selection.draw import draw
from verifix.selection.options import DEFAULT_STRATEGY, STRATEGIES, SelectOptions
from verifix.selection.spreading import Spool, spread
from verifix.storage import chunks

COUNT = 90


def net(width: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)).eval()


def data(count: int = COUNT):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def selected(strategy: str = "uncertain", samples=None, **settings) -> verifix.Selection:
    given = {"count": 30, "random_share": 0.4, "batch_size": 8, "progress": False} | settings
    return verifix.select(net(), data() if samples is None else samples, strategy=strategy, **given)


def part(selection: verifix.Selection, name: str) -> list[int]:
    return [entry.id for entry in selection.entries if entry.part == name]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_keeps_the_same_random_part(strategy):
    found = selected(strategy)
    assert len(set(found.indices)) == 30
    drawn = part(found, "random")
    assert len(drawn) == (30 if strategy == "random" else 12)
    assert tuple(drawn) == found.header.random
    assert drawn[:12] == part(selected("random"), "random")[:12]
    assert found.header.probability == len(drawn) / COUNT
    for entry in found.entries:
        assert entry.probability == (len(drawn) / COUNT if entry.part == "random" else None)
    weights = dict(zip(found.indices, found.weights, strict=True))
    assert all(weights[i] == (pytest.approx(COUNT / len(drawn)) if i in drawn else 0) for i in found.indices)


def test_every_sample_is_drawn_with_the_probability_that_is_told():
    times = np.zeros(COUNT)
    rounds = 2000
    for seed in range(rounds):
        drawn = draw(COUNT, "", SelectOptions(count=40, random_share=0.5, seed=seed))
        times[drawn.now] += 1
        assert drawn.probability == 20 / COUNT
    share = 20 / COUNT
    error = (rounds * share * (1 - share)) ** 0.5
    assert abs(times - rounds * share).max() < 4 * error
    assert times.sum() == rounds * 20


def test_guesses_are_the_models_best_answers():
    x, y = data()
    shares = net()(x).softmax(1).detach()
    for entry in selected("spread").entries:
        assert [label for label, _ in entry.guesses] == shares[entry.id].argsort(descending=True).tolist()
        assert [p for _, p in entry.guesses] == pytest.approx(
            shares[entry.id].sort(descending=True).values.tolist(), abs=1e-5
        )
        assert entry.label == int(y[entry.id])


def test_uncertain_takes_the_smallest_margins():
    shares = net()(data()[0]).softmax(1).sort(dim=1).values
    margins = (shares[:, -1] - shares[:, -2]).tolist()
    found = selected("uncertain")
    free = [i for i in range(COUNT) if i not in found.header.random]
    assert part(found, "uncertain") == sorted(free, key=margins.__getitem__)[:18]


def test_suspect_takes_the_lowest_label_quality_of_cleanlab():
    from cleanlab.rank import get_label_quality_scores

    x, y = data()
    quality = get_label_quality_scores(y.numpy(), net()(x).double().softmax(1).detach().numpy()).tolist()
    found = selected("suspect")
    free = [i for i in range(COUNT) if i not in found.header.random]
    assert part(found, "suspect") == sorted(free, key=quality.__getitem__)[:18]


def test_balanced_takes_as_many_of_each_class_as_there_are():
    x, _ = data()
    y = torch.tensor([0] * 70 + [1] * 16 + [2] * 4)
    found = selected("balanced", (x, y), count=40, random_share=0.25)
    taken = np.bincount([int(y[i]) for i in part(found, "balanced")], minlength=3)
    there = np.bincount([int(y[i]) for i in range(COUNT) if i not in found.header.random], minlength=3)
    assert taken.sum() == 30
    assert taken[2] == there[2]
    assert abs(taken[0] - taken[1]) <= 1 or taken[1] == there[1]


def test_spread_reaches_what_is_rare():
    generator = np.random.default_rng(0)
    centres = np.eye(5) * 40
    sizes = [400, 300, 5, 4, 3]
    points = np.concatenate([c + generator.normal(size=(n, 5)) for c, n in zip(centres, sizes, strict=True)])
    blob = np.repeat(np.arange(5), sizes)
    order = generator.permutation(len(points))
    with spooled(points) as spool:
        chosen = spread(spool, order, 5, 0)
        assert sorted(spread(spool, order[:3], 9, 0)) == sorted(order[:3].tolist())
    assert sorted(blob[chosen]) == [0, 1, 2, 3, 4]
    for i in chosen:  # each is the one nearest to the mean of its cluster
        own = points[blob == blob[i]]
        nearest = np.square(own - own.mean(axis=0)).sum(axis=1).argmin()
        assert np.square(own[nearest] - points[i]).sum() < 3


def spooled(points) -> Spool:
    spool = Spool()
    for start in range(0, len(points), 100):
        spool.take(range(start, min(start + 100, len(points))), {"features": points[start : start + 100]})
    return spool


@pytest.mark.parametrize("seen", [2**16, 60])
def test_spread_is_k_means_of_all_in_memory(monkeypatch, seen):
    """By a slow reading: each sample with its centre, the nearest of each cluster, the largest cluster first."""
    monkeypatch.setattr(spreading, "LOOKED_AT", seen)
    monkeypatch.setattr(spreading, "PER_CENTRE", 1)
    monkeypatch.setattr(spreading, "MINI_BATCH", 64)
    generator = np.random.default_rng(1)
    points = generator.normal(size=(500, 6)).astype(np.float32)
    order = generator.permutation(500)[:410]
    with spooled(points) as spool:
        chosen = spread(spool, order, 30, 0)
    centres = MiniBatchKMeans(30, random_state=0, batch_size=64, n_init=3, reassignment_ratio=0.0)
    centres = centres.fit(points[order[:seen]]).cluster_centers_
    distances = np.square(points[order][:, None] - centres).sum(axis=2)
    own = distances.argmin(axis=1)
    sizes = np.bincount(own, minlength=30)
    nearest = [
        order[min(np.flatnonzero(own == k), key=distances[:, k].__getitem__)] if sizes[k] else -1 for k in range(30)
    ]
    expected = [nearest[k] for k in np.argsort(-sizes, kind="stable") if sizes[k]]
    assert chosen[: len(expected)] == expected
    assert len(set(chosen)) == 30
    assert set(chosen) <= set(order.tolist())


def test_features_are_what_the_last_layer_sees_brought_to_few_numbers(monkeypatch):
    from verifix.model.samples import read_samples
    from verifix.selection.features import with_features

    x, y = data(40)
    model = net(200)
    hidden = model[1](model[0](x)).double().detach()
    logits, seen = with_features(model, torch.device("cpu"), read_samples((x, y)), 0)(range(40), 16)
    assert torch.allclose(logits, model(x).double())
    assert seen.shape == (40, 64)
    want, got = torch.pdist(hidden), torch.pdist(seen.double())
    assert float((got / want - 1).abs().mean()) < 0.15
    few = net(10)
    assert torch.allclose(
        with_features(few, torch.device("cpu"), read_samples((x, y)), 0)(range(40), 16)[1], few[1](few[0](x))
    )


def test_without_a_layer_that_sees_samples_logits_are_spread(capsys):
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(3, 3)

        def forward(self, x):
            return self.score(x.reshape(len(x), 2, 3)).mean(1)

    torch.manual_seed(0)
    verifix.select(Tokens().eval(), data(), strategy="spread", count=10, progress=False)
    assert "no linear layer sees one row per sample" in capsys.readouterr().err


def decided(path: Path, selection: verifix.Selection, ids) -> str:
    """Write records on some samples of a selection, as a review does."""
    header = replace(selection.queue("d").header, format=VERIFIED)
    lines = [Record(id=i, label="0", verified="1", status="relabel", annotator="ada") for i in ids]
    path.write_bytes(spelled([header, *lines]))
    return str(path)


def test_later_rounds_go_on_with_one_random_order(tmp_path):
    first = selected("uncertain", count=20)
    path = decided(tmp_path / "1.jsonl", first, first.indices)
    second = selected("uncertain", count=20, verified=path)
    assert not set(first.indices) & set(second.indices)
    assert second.header.random[:8] == first.header.random
    assert len(second.header.random) == 16
    assert second.header.probability == 16 / COUNT
    by_strategy = set(part(first, "uncertain"))
    assert set(part(second, "random")) == set(second.header.random[8:]) - by_strategy
    assert second.header.earlier == (path,)
    assert len(second.indices) == 20
    both = decided(tmp_path / "2.jsonl", second, second.indices)
    decisions = read_decisions(both)
    assert set(decisions.labels) == set(first.indices) | set(second.indices)
    assert decisions.counted == set(second.header.random)
    third = selected("random", count=20, verified=both)
    assert third.header.earlier == (path, both)
    assert set(third.header.random[:16]) == set(second.header.random)


def test_a_random_part_that_a_strategy_has_been_before_is_still_a_random_sample(tmp_path):
    """Over many draws, its mean is that of all samples, although the strategy selected the lowest ones before."""
    values = np.random.default_rng(0).normal(size=60)
    head = Header(data="d", classes=("0", "1"), length=60, fingerprint="", strategy="lowest", seed=0, format=VERIFIED)
    means = []
    for seed in range(400):
        first = draw(60, "", SelectOptions(count=20, random_share=0.3, seed=seed))
        lowest = first.free[np.argsort(values[first.free])[:14]]
        ids = [*first.now, *lowest.tolist()]
        header = replace(head, random=first.random, probability=first.probability)
        lines = [Record(id=i, label="0", status="ok", annotator="ada") for i in ids]
        (tmp_path / "1.jsonl").write_bytes(spelled([header, *lines]))
        options = SelectOptions(count=20, random_share=0.6, seed=seed + 5000, verified=str(tmp_path / "1.jsonl"))
        second = draw(60, "", options)
        assert not set(second.now) & set(ids)
        assert set(second.random) <= {*second.now, *ids}
        assert len(second.random) == 18
        means.append(values[list(second.random)].mean())
    assert abs(np.mean(means) - values.mean()) < 3.5 * np.std(means) / 20


def test_what_was_left_undone_is_taken_up_first(tmp_path):
    first = selected("uncertain", count=20)
    done = first.indices[:10]
    second = selected("uncertain", count=20, verified=decided(tmp_path / "1.jsonl", first, done))
    waiting = [i for i in first.header.random if i not in done]
    assert waiting
    assert part(second, "random")[: len(waiting)] == waiting
    assert len(part(second, "random")) == 8
    assert not set(second.indices) & set(done)


def test_nothing_is_left_in_the_end(tmp_path, capsys):
    every = selected("random", count=COUNT)
    assert every.header.probability == 1
    with pytest.raises(UsageError, match="nothing left to verify"):
        selected("uncertain", verified=decided(tmp_path / "all.jsonl", every, every.indices))
    nearly = decided(tmp_path / "most.jsonl", every, every.indices[:-5])
    assert selected("uncertain", verified=nearly).indices == every.indices[-5:]
    assert "5 samples are selected in place of 30" in capsys.readouterr().err


def test_records_of_another_data_set_are_refused(tmp_path):
    path = decided(tmp_path / "1.jsonl", selected(), [3])
    x, y = data()
    with pytest.raises(DataError, match="other file names or labels"):
        selected(samples=(x, 2 - y), verified=path)
    with pytest.raises(DataError, match="90 samples, but the samples to select from has 80"):
        selected(samples=data(80), verified=path)
    with pytest.raises(DataError, match="has no such header"):
        selected(verified=str(write(tmp_path / "x.jsonl", record(1, "a"))))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"strategy": "best"}, "strategy is 'best'; it must be one of 'auto', 'random'"),
        ({"count": 0}, "count is 0"),
        ({"random_share": 0}, "random_share is 0; it must be a number above 0"),
        ({"random_share": 1.5}, "random_share is 1.5"),
        ({"random_share": True}, "random_share is True"),
        ({"strategy": "random", "scores": "x"}, "scores is 'x'; it must be omitted"),
        ({"verified": "none.jsonl"}, "none.jsonl does not exist"),
    ],
)
def test_settings_are_checked(settings, told):
    with pytest.raises(UsageError, match=told):
        selected(**settings)


@pytest.mark.parametrize("strategy", ["balanced", "suspect"])
def test_strategies_that_look_at_labels_need_them(strategy):
    x, y = data()
    y[4] = -1
    with pytest.raises(UsageError, match=f"strategy is '{strategy}', which looks at given labels"):
        selected(strategy, (x, y))
    assert selected("uncertain", (x, y), count=COUNT).entries[0].guesses
    assert [entry.id for entry in selected("uncertain", (x, y), count=COUNT).entries if entry.label is None] == [4]


def counted(deadly: int | None = None) -> Counted:
    return Counted(*data(), deadly)


@pytest.mark.parametrize("strategy", ["uncertain", "suspect", "spread"])
@pytest.mark.parametrize("deadly", [30, COUNT + 60])
def test_a_killed_run_goes_on_where_it_was(strategy, deadly, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 16)
    monkeypatch.setattr(reading, "MEMORY_BYTES", 0)
    want = selected(strategy, counted())
    folder = tmp_path / "scores"
    killed(lambda: selected(strategy, counted(deadly), scores=str(folder)))
    again = counted()
    found = selected(strategy, again, scores=str(folder))
    assert found.entries == want.entries
    assert found.header == want.header
    assert [path.name for path in folder.iterdir()] == ["scores-00000-of-00001.parquet"]
    import pyarrow.parquet as pq

    table = pq.read_table(folder).to_pydict()
    assert sorted(want.indices) == [i for i, picked in zip(table["sample"], table["picked"], strict=True) if picked]
    with pytest.raises(UsageError, match="scores of a finished run"):
        selected(strategy, counted(), scores=str(folder))


def test_strategies_that_score_nothing_run_only_what_they_select():
    pool = counted()
    model = net()
    runs = []
    model.register_forward_hook(lambda _, inputs, __: runs.append(len(inputs[0])))
    verifix.select(model, pool, strategy="random", count=10, batch_size=5, progress=False)
    assert sum(runs) < 40


def test_the_page_names_the_default(tmp_path):
    """And the benchmark writes it there, with its table and plot, whatever the default is."""
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs/selection.md").read_text("utf-8")
    assert f"| `auto` | the default: `{DEFAULT_STRATEGY}` |" in page
    copy = tmp_path / "selection.md"
    copy.write_text(page.replace(f"the default: `{DEFAULT_STRATEGY}`", "the default: `another`"), "utf-8")
    records = [
        json.loads(line) for line in (root / "benchmarks/results/strategies.jsonl").read_text("utf-8").splitlines()
    ]
    rows = strategies.summed_up(records)
    strategies.write_page(rows, copy, tmp_path / "images" / "strategies.svg")
    again = copy.read_text("utf-8")
    assert f"| `auto` | the default: `{DEFAULT_STRATEGY}` |" in again
    assert "(images/strategies.svg)" in again
    assert "Not measured yet" not in again
    means = [row["mean"] for row in strategies.standings(rows)]
    assert means == sorted(means, reverse=True)
    strategies.write_page(rows, copy, tmp_path / "images" / "strategies.svg")
    assert copy.read_text("utf-8") == again
