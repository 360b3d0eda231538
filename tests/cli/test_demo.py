from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from verifix.cli.demo import digits, spiral
from verifix.cli.demo.training import percent_right, wrong_labels
from verifix.cli.main import main


def test_wrong_labels_are_wrong_and_exactly_as_many_as_asked():
    labels = torch.arange(1000) % 10
    noisy = wrong_labels(labels, 0.3, 10, seed=1)
    assert int((noisy != labels).sum()) == 300
    assert set(noisy.tolist()) == set(range(10))


def test_the_three_parts_of_the_digits_share_nothing():
    data = digits.load(3)
    parts = [set(p.tolist()) for p in (data.training, data.verified, data.unseen)]
    assert [len(p) for p in parts] == [1000, 200, 597]
    assert len(set.union(*parts)) == 1797


@pytest.mark.usefixtures("short_training")
def test_the_digits_demo_reports_and_draws(tmp_path, capsys):
    assert main(["demo", "--seed", "1", "--out", str(tmp_path / "new" / "out"), "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert set(result) == {"seeds", "mean_before", "mean_gain", "seconds"}
    (row,) = result["seeds"]
    assert set(row) == {"seed", "before", "after", "gain", "alpha"}
    assert row["seed"] == 1
    assert row["gain"] == pytest.approx(row["after"] - row["before"])
    data = digits.load(1)
    model = digits.trained(data, 1)
    assert percent_right(model, data.inputs[data.training], data.given) >= 95
    assert row["before"] == pytest.approx(percent_right(model, data.inputs[data.unseen], data.labels[data.unseen]))
    for name in ("strength-curve.png", "digits-set-right.png"):
        with Image.open(tmp_path / "new" / "out" / name) as picture:
            assert picture.size[0] > 500
            assert len(picture.convert("L").getcolors()) > 20
    assert f"report and pictures in {tmp_path / 'new' / 'out'}" in err
    report = (tmp_path / "new" / "out" / "report.html").read_text()
    assert "Correction of <bdi>the network of verifix demo digits</bdi>" in report
    assert f"{row['before']:.1f}% correct before, {row['after']:.1f}% after" in report
    assert report.count('<img src="data:image/png') > 6
    assert main(["demo", "--seed", "1", "--out", str(tmp_path / "new" / "out")]) == 2
    assert "exists already; choose another name, or pass --force" in capsys.readouterr().err


def test_the_demo_makes_a_fresh_folder_each_time(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("verifix.cli.demo", fromlist=["DEMOS"]).DEMOS, "digits", _quick)
    for _ in range(2):
        main(["demo", "--seeds", "2"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["verifix-demo-1", "verifix-demo-2"]
    out = capsys.readouterr().out
    assert "60.0% after (+10.0); no change\n" in out
    assert "mean: 50.0% before, gain +10.0" in out
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", "file"]) == 2
    assert main(["demo", "--seeds", "0"]) == 2
    assert main(["demo", "squares"]) == 2


def _quick(seed, folder):
    from verifix.cli.demo.outcome import Outcome

    return Outcome("Story.", 100.0, 50.0, 60.0, None, "no change")


@pytest.mark.usefixtures("short_training")
def test_the_spiral_demo_draws_the_three_panels(tmp_path):
    outcome = spiral.run(0, tmp_path)
    assert outcome.memorised >= 90
    assert "on 2,000 test samples" in (tmp_path / "report.html").read_text()
    assert outcome.after - outcome.before >= 5
    with Image.open(tmp_path / "decision-boundaries.png") as picture:
        assert picture.size[0] > 2 * picture.size[1]
    x, y = spiral.spirals(1000, 0)
    assert torch.equal(y.bincount(), torch.tensor([500, 500]))
    assert float(x.abs().max()) < 7
