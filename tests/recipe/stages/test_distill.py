from __future__ import annotations

import pytest
import torch
from torch import nn

import verifix
from tests.cases import small_data
from tests.recipe.stages.test_training import memorised_case
from tests.stage_cases import same, with_run
from verifix.model.labels import UNKNOWN
from verifix.model.samples import read_samples
from verifix.model.unlabelled import Unlabelled
from verifix.recipe.stages import distill
from verifix.recipe.stages.distill import EVERY, LIKELY, PRIOR, TRUST, Distill, consistency, with_given
from verifix.recipe.stages.jitter import mixed
from verifix.recipe.stages.training import Pool

pytestmark = pytest.mark.usefixtures("short_training")


def beside(count=90, given=False, seed=7) -> Unlabelled:
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(count) % 3
    return Unlabelled(read_samples((x, torch.full_like(labels, UNKNOWN))), labels if given else None)


def test_probabilities_of_given_labels_weigh_answers_like_a_loop():
    answers = torch.rand(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    given = torch.arange(40) % 3
    given[::7] = UNKNOWN
    counts = [[PRIOR] * 3 for _ in range(3)]
    for p, label in zip(answers.tolist(), given.tolist(), strict=True):
        for true in range(3):
            if label != UNKNOWN:
                counts[true][label] += p[true]
    found = with_given(answers, given, TRUST)
    for row, p, label in zip(found.tolist(), answers.tolist(), given.tolist(), strict=True):
        weights = [1.0 if label == UNKNOWN else (counts[t][label] / sum(counts[t])) ** TRUST for t in range(3)]
        expected = [a * b for a, b in zip(p, weights, strict=True)]
        assert row == pytest.approx([value / sum(expected) for value in expected])


def test_inputs_and_targets_are_mixed_in_the_same_shares():
    generator = torch.Generator().manual_seed(3)
    x, targets = torch.arange(12.0).view(6, 2), torch.eye(6)
    inputs, soft = mixed(x, targets, generator)
    torch.testing.assert_close(inputs, soft @ x)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(6))
    assert torch.equal(x, torch.arange(12.0).view(6, 2))
    assert torch.equal(targets, torch.eye(6))
    assert bool(((soft > 0).sum(dim=1) <= 2).all())


@pytest.fixture
def drawn(monkeypatch):
    """What pools draw: whose samples, and which."""
    found, real = [], Pool.draw

    def noted(self):
        inputs, places = real(self)
        found.append((self.samples, [self.indices[place] for place in places.tolist()]))
        return inputs, places

    monkeypatch.setattr(Pool, "draw", noted)
    return found


def test_it_learns_its_own_answers_and_every_third_step_the_verified_labels(lend, drawn):
    model, x, y = memorised_case(double=False)
    context = with_run(lend(model, x, y, folds=5, without=2), unlabelled=beside())
    fitter = Distill(context)
    update = fitter.fit((float(fitter.lengths[-1]), 0.0, 0.0))
    labelled = [indices for samples, indices in drawn if samples is context.run.samples]
    assert len(labelled) == len(drawn) // EVERY
    assert {i for indices in labelled for i in indices} <= set(context.indices)
    with context.corrected():
        expected = model(next(beside().samples.batches(range(90), 90)).inputs).softmax(dim=1)
    torch.testing.assert_close(fitter.answers.float(), expected)
    assert any(not torch.equal(value, context.parameter(name)) for name, value in update.items())


def test_it_is_the_same_twice_and_after_a_shorter_one(lend):
    model, x, y = memorised_case(double=False)
    context = with_run(lend(model, x, y), unlabelled=beside(given=True))
    short, long = ((float(seen), TRUST, 0.0) for seen in Distill(context).lengths)
    first, second = Distill(context), Distill(context)
    first.fit(short)
    assert same(dict(first.fit(long)), dict(second.fit(long)))


def test_inputs_are_changed_where_they_can_be_and_given_labels_are_a_candidate_where_not(lend, monkeypatch):
    model, x, y = memorised_case(double=False)
    context = lend(model, x, y)

    def ways():
        return [
            {tuple(way) for _, *way in Distill(with_run(context, unlabelled=inputs)).candidates().strengths}
            for inputs in (beside(), beside(given=True))
        ]

    assert ways() == [{(0.0, 1.0)}, {(0.0, 1.0)}]
    monkeypatch.setattr(distill, "weak_and_strong", lambda *_: None)
    assert ways() == [{(0.0, 0.0)}, {(0.0, 0.0), (TRUST, 0.0)}]
    assert "no unlabelled inputs" in Distill(context).obstacle()


def test_large_networks_learn_from_soft_answers(lend):
    model, x, y = memorised_case(double=False)
    context = with_run(lend(model, x, y), unlabelled=beside(), work=1e11)
    assert {changes for *_, changes in Distill(context).candidates().strengths} == {0.0}


def test_consistency_is_that_of_a_loop():
    torch.manual_seed(0)
    weak, strong = 4 * torch.randn(30, 3, dtype=torch.float64), torch.randn(30, 3, dtype=torch.float64)
    weak.requires_grad_()
    losses = []
    for a, b in zip(weak.softmax(dim=1), strong.softmax(dim=1), strict=True):
        losses.append(-float(b[a.argmax()].log()) if a.max() >= LIKELY else 0.0)
    assert 0 < losses.count(0.0) < 30
    found = consistency(weak, strong.requires_grad_())
    assert found.item() == pytest.approx(sum(losses) / 30)
    found.backward()
    assert weak.grad is None
    assert strong.grad is not None


def test_with_changes_every_step_is_on_both_kinds_and_the_longer_one_goes_on_from_the_shorter(lend, drawn):
    model, x, y = memorised_case(double=False)
    context = with_run(lend(model, x, y, folds=5, without=2), unlabelled=beside())
    fitter = Distill(context)
    short, long = fitter.candidates().strengths
    fitter.fit(short)
    after = dict(fitter.fit(long))
    own = [samples is context.run.samples for samples, _ in drawn]
    assert own == [True, False] * (len(drawn) // 2)
    assert {i for samples, indices in drawn if samples is context.run.samples for i in indices} <= set(context.indices)
    assert same(after, dict(Distill(context).fit(long)))
    assert any(not torch.equal(value, context.parameter(name)) for name, value in after.items())


def test_more_inputs_than_are_used_are_drawn_from_alike_in_all_contexts(lend, monkeypatch):
    monkeypatch.setattr(distill, "MOST", 20)
    model, x, y = memorised_case(double=False)
    whole = with_run(lend(model, x, y, folds=5), unlabelled=beside())
    indices = Distill(whole).indices
    assert len(set(indices)) == 20
    assert Distill(whole.without(3)).indices == indices


def test_the_default_recipe_tries_it_last_where_there_are_unlabelled_inputs():
    x, y = small_data(120)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    others = torch.randn(60, 8)
    with_inputs = verifix.correct(model, (x, y), unlabelled=others, progress=False)
    stages = [path.stages for path in with_inputs.paths]
    assert stages[-1][-1] == "distill"
    assert ("project_unlabelled", "refit") in stages
    without = verifix.correct(model, (x, y), progress=False)
    assert not any({"distill", "project_unlabelled"} & set(path.stages) for path in without.paths)


def test_inputs_that_no_stage_of_a_recipe_uses_are_refused():
    x, y = small_data(60)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with pytest.raises(verifix.UsageError, match="no stage of recipe 'refit' uses them; name one of"):
        verifix.correct(model, (x, y), unlabelled=torch.randn(9, 8), recipe="refit", progress=False)
