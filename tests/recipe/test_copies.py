"""Jittered copies: which there are, that no fold knows those of its held-out samples, and what projects by them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import verifix
from tests.stage_cases import context_of, inputs_of, noisy_case, projected_by_hand
from verifix.model.borrow import borrowed
from verifix.options import CorrectArguments, CorrectOptions
from verifix.preflight import begin
from verifix.recipe import copies
from verifix.recipe.copies import COPIES, MOST, with_copies
from verifix.recipe.plan import planned
from verifix.recipe.stages import PATHS, Project
from verifix.recipe.stages.jitter import SPREAD, flipped_and_shifted
from verifix.recipe.stages.project_jittered import ProjectJittered

QUIET = CorrectArguments(progress=False)


def copies_of(x, indices, seed: int = 0, most: int = COPIES):
    """The copies of some samples, one by one, as noise is documented."""
    size = SPREAD * x[: MOST // COPIES].std()
    made = []
    for copy in range(most):
        for i in indices:
            generator = torch.Generator().manual_seed(seed * MOST + copy * len(x) + i)
            made.append(x[i : i + 1] + size * torch.empty(1, *x.shape[1:]).normal_(generator=generator))
    return torch.cat(made)


@pytest.mark.parametrize("batch_size", [7, 64])
def test_a_fold_is_projected_by_its_own_samples_and_their_copies_alone(batch_size):
    model, x, y, _ = noisy_case()
    with borrowed(model):
        context = with_copies(context_of(model, x, y, folds=3, without=1, batch_size=batch_size, seed=2), QUIET)
        update = ProjectJittered(context).fit(30.0)
        seen = inputs_of(model, torch.cat([x[context.indices], copies_of(x, context.indices, seed=2)]))
        for name, value in update.items():
            expected = projected_by_hand(context.original(name), seen[name], 30.0)
            assert torch.allclose(value.double(), expected, atol=1e-5), name
        plain = Project(context).fit(30.0)
        assert not any(torch.allclose(plain[name], value, atol=1e-4) for name, value in update.items())


def test_there_are_ten_of_each_as_far_as_there_are_two_thousand_and_four_or_none(monkeypatch):
    model, x, y, _ = noisy_case()
    with borrowed(model):
        context = context_of(model, x, y)
        layer = context.layers[0]
        for most, expected in ((2000, 600), (300, 300), (240, 240), (239, None)):
            monkeypatch.setattr(copies, "MOST", most)
            found = with_copies(context, QUIET).run.copies
            assert (None if found is None else found.moments(layer, [0], {}).n) == expected


def test_images_are_flipped_and_shifted():
    torch.manual_seed(0)
    images, y = torch.randn(20, 1, 8, 8), torch.arange(20) % 3
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    with borrowed(model):
        context = with_copies(context_of(model, images, y), QUIET)
        (head,) = (layer for layer in context.layers if layer.parameter == "3.weight")
        found = context.run.copies.moments(head, [0], {})
        generator = torch.Generator()
        changed = [
            flipped_and_shifted(images[i : i + 1], generator.manual_seed(copy * 20 + i))
            for copy in range(COPIES)
            for i in range(20)
        ]
        rows = inputs_of(model, torch.cat(changed))["3.weight"].double()
    assert torch.allclose(found.gram[0].double(), rows.T @ rows, rtol=1e-5)


def test_it_needs_copies_and_original_weights():
    model, x, y, _ = noisy_case()
    with borrowed(model):
        context = context_of(model, x, y)
        assert "cannot be jittered" in ProjectJittered(context).obstacle()
        context = with_copies(context, QUIET)
        assert ProjectJittered(context).obstacle() == ""
        later = context.after("project", 30.0, Project(context).fit(30.0))
        assert "an earlier stage has changed weights" in ProjectJittered(later).obstacle()


def test_auto_projects_by_copies_where_there_are_some():
    model, x, y, _ = noisy_case()
    with begin(model, (x, y), QUIET, folds=5) as start:
        paths = start.plan.paths
    assert {("project_jittered", "refit"), ("project_jittered", "finetune"), ("finetune",)} < set(paths)
    assert ("project", "layerwise", "refit") in paths
    assert ("project", "refit") not in paths
    ids = torch.randint(0, 9, (60, 5), generator=torch.Generator().manual_seed(0))
    reader = nn.Sequential(nn.EmbeddingBag(9, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with begin(reader, (ids, y), QUIET, folds=5) as start:
        assert start.plan.paths == PATHS
        assert start.whole.run.copies is None
    assert planned(CorrectOptions(), jittered=False).paths == PATHS


def test_the_paper_alone_has_no_copies():
    model, x, y, _ = noisy_case()
    with begin(model, (x, y), CorrectArguments(progress=False, recipe="verifix"), folds=5) as start:
        assert start.whole.run.copies is None


def test_a_strength_may_be_given_to_it():
    model, x, y, _ = noisy_case()
    how = {"progress": False, "alpha": 30.0}
    found = verifix.correct(model, (x, y), recipe="project_jittered", **how)
    again = verifix.correct(model, (x, y), recipe="project_jittered", batch_size=9, **how)
    assert found.strengths == {"project_jittered": 30.0}
    seen = inputs_of(model, torch.cat([x, copies_of(x, range(60))]))
    for name, value in found.corrected.items():
        assert torch.allclose(value.double(), projected_by_hand(found.original[name], seen[name], 30.0), atol=1e-5)
        assert torch.allclose(again.corrected[name], value, atol=1e-6)
    assert verifix.correct(model, (x, y), **how).strengths == {"project": 30.0}


class Routed(nn.Module):
    """A network with an expert that only inputs which begin with exactly 1 reach."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rare, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        routed = x.clone()
        (rows,) = (x[:, 0] == 1).nonzero(as_tuple=True)
        if len(rows):
            routed[rows] = self.rare(x[rows])
        return self.head(routed)


def test_a_layer_that_no_copy_reaches_is_projected_by_the_samples_alone():
    _, x, y, _ = noisy_case()
    x[::2, 0] = 1.0
    model = Routed().eval()
    with borrowed(model):
        context = with_copies(context_of(model, x, y, folds=3, without=1), QUIET)
        jittered, plain = ProjectJittered(context).fit(30.0), Project(context).fit(30.0)
    assert torch.equal(jittered["rare.weight"], plain["rare.weight"])
    assert not torch.allclose(jittered["head.weight"], plain["head.weight"], atol=1e-4)
