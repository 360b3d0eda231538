from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import verifix
from tests.cases import small_data, small_net
from tests.recipe.stages.test_training import memorised_case, plain_training
from tests.stage_cases import memorised, same, with_run
from verifix import DataError
from verifix.model.samples import read_samples
from verifix.recipe.candidates import Listed
from verifix.recipe.stages import finetune
from verifix.recipe.stages.finetune import CAREFUL, EPOCHS, FEWEST, MOST, RATE, SHARES, WORK, FineTune, rate_of
from verifix.recipe.stages.training import Pool, batch_size

pytestmark = pytest.mark.usefixtures("short_training")


def drawn(monkeypatch) -> list[list[int]]:
    """What every pool draws from now on, by its place among the samples."""
    found: list[list[int]] = []
    real = Pool.draw

    def noted(self):
        inputs, places = real(self)
        found.append([self.indices[place] for place in places.tolist()])
        return inputs, places

    monkeypatch.setattr(Pool, "draw", noted)
    return found


def test_it_is_a_plain_training_on_the_samples_of_the_context_alone(lend, monkeypatch):
    model, x, y = memorised_case()
    context = lend(model, x, y, folds=5, without=2)
    read, fitter = drawn(monkeypatch), FineTune(context)
    update = fitter.fit((RATE, float(fitter.lengths[-1]), 0.0))
    assert len(read) == round(fitter.lengths[-1] / min(56, batch_size(56, context.run.work)))
    assert {i for batch in read for i in batch} == set(context.indices)
    for name, value in plain_training(model, x, y, read, RATE).items():
        torch.testing.assert_close(update[name], value, rtol=0, atol=1e-9)


def test_stopped_early_it_is_the_average_so_far_of_the_longest_training(lend, monkeypatch):
    model, x, y = memorised_case()
    read, fitter = drawn(monkeypatch), FineTune(lend(model, x, y))
    steps = [round(length / min(70, batch_size(70, fitter.context.run.work))) for length in fitter.lengths]
    update = fitter.fit((RATE, float(fitter.lengths[1]), 0.0))
    assert len(read) == steps[1]
    for name, value in plain_training(model, x, y, read, RATE, steps=steps[-1]).items():
        torch.testing.assert_close(update[name], value, rtol=0, atol=1e-9)


def test_training_on_from_short_to_long_is_training_long(lend):
    x, y = small_data(70)
    model = memorised(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)), x, y)
    context = lend(model, x, y)
    fitter = FineTune(context)
    few, some, many = map(float, fitter.lengths)
    for rate in (RATE, CAREFUL):
        for jitter in (1.0, 0.0):
            short, long = fitter.fit((rate, few, jitter)), fitter.fit((rate, many, jitter))
            assert same(FineTune(context).fit((rate, many, jitter)), long)
            assert same(FineTune(context).fit((rate, few, jitter)), short)
            assert same(fitter.fit((rate, few, jitter)), short)
            assert not same(short, long)
    assert not same(fitter.fit((RATE, many, 1.0)), fitter.fit((RATE, many, 0.0)))
    with pytest.raises(ValueError, match="was not kept"):
        fitter.fit((RATE, some, 0.0))
    fitter.release()
    assert fitter.trainings == {}
    fitter.fit((RATE, some, 0.0))


@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_jitter_changes_inputs_and_turns_dropout_on(lend, jitter):
    x, y = small_data(70)
    model = memorised(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 3)), x, y)
    context = lend(model, x, y)
    seen, on = [], set()
    fitter = FineTune(context)
    length = float(fitter.lengths[0])

    def noted(module, inputs):
        seen.append(inputs[0].clone())
        on.add((model[1].training, model[2].training))

    handle = model[0].register_forward_pre_hook(noted)
    fitter.fit((RATE, length, jitter))
    handle.remove()
    known = {tuple(row.tolist()) for row in x}
    assert all((tuple(row.tolist()) in known) is not bool(jitter) for batch in seen for row in batch)
    assert on == {(False, bool(jitter))}
    assert not any(module.training for module in model.modules())


class Embedded(nn.Module):
    """A model of token ids."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.table, self.out, self.head = nn.Embedding(9, 6), nn.Dropout(dropout), nn.Linear(6, 3)

    def forward(self, ids):
        return self.head(self.out(self.table(ids).mean(1)))


TOKENS = torch.arange(70 * 4).view(70, 4) % 9
CHANGEABLE = {
    "numbers": (small_net, None, True),
    "tokens": (lambda: Embedded(0.0), TOKENS, False),
    "tokens and dropout": (lambda: Embedded(0.1), TOKENS, True),
}


@pytest.mark.parametrize("kind", CHANGEABLE)
def test_the_candidates_are_each_point_with_jitter_where_there_is_one(lend, kind):
    make, inputs, can = CHANGEABLE[kind]
    x, y = small_data(70)
    fitter = FineTune(lend(make().eval(), x if inputs is None else inputs, y))
    candidates = fitter.candidates()
    assert isinstance(candidates, Listed)
    assert set(candidates.strengths) == {
        (RATE, float(seen), jitter) for seen in fitter.lengths for jitter in ((0.0, 1.0) if can else (0.0,))
    }
    assert len(FineTune.numbers) == 3
    assert fitter.obstacle() == ""


def test_large_networks_are_trained_at_a_lower_rate(lend, monkeypatch):
    monkeypatch.setattr(finetune, "MOST", MOST)
    x, y = small_data(70)
    for work, rate in ((1e3, RATE), (WORK / MOST, RATE), (1.01 * WORK / MOST, CAREFUL), (1e12, CAREFUL)):
        fitter = FineTune(lend(small_net().eval(), x, y, work=work))
        assert rate_of(fitter.context) == rate
        assert {strength[0] for strength in fitter.candidates().strengths} == {rate}


@pytest.mark.parametrize(
    ("count", "work", "longest"),
    [
        (70, 1e3, MOST),
        (70, WORK / 5000, 5000),
        (70, 1e12, FEWEST),
        (1500, 1e12, EPOCHS * 1500),
        (1500, 1e3, MOST),
        (9000, 1e3, EPOCHS * 9000),
    ],
)
def test_how_long_it_trains_depends_on_the_work_within_bounds(lend, monkeypatch, count, work, longest):
    monkeypatch.setattr(finetune, "MOST", MOST)
    monkeypatch.setattr(finetune, "FEWEST", FEWEST)
    fitter = FineTune(lend(nn.Linear(8, 3).eval(), *small_data(count), work=work))
    assert fitter.lengths == [round(share * longest) for share in SHARES]


def test_the_work_of_a_sample_is_its_multiplications(lend):
    assert lend(small_net().eval(), *small_data(70)).run.work == 8 * 16 + 16 * 16 + 16 * 3


class Averaging(nn.Module):
    """A model of sequences of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x):
        return self.layer(x).mean(dim=1)


def test_all_folds_train_alike_where_samples_are_of_different_length(lend, monkeypatch):
    def padded(items):
        inputs, labels = zip(*items, strict=True)
        return nn.utils.rnn.pad_sequence(list(inputs), batch_first=True), torch.tensor(labels)

    items = [(torch.randn(1 + k % 3, 8), k % 3) for k in range(60)]
    context = lend(Averaging().eval(), *padded(items), folds=3)
    samples = read_samples(DataLoader(items, batch_size=8, collate_fn=padded))
    monkeypatch.setattr(finetune, "FEWEST", 0)
    monkeypatch.setattr(finetune, "WORK", 200 * context.run.work)
    whole = with_run(context, samples=samples)
    lengths = [FineTune(part).lengths for part in (whole, whole.without(0), whole.without(0).without(1))]
    assert lengths[0] == lengths[1] == lengths[2] == [round(share * 200) for share in SHARES]


class Closed(nn.Module):
    """A model that lets no gradients through."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        with torch.no_grad():
            return self.net(x)


def test_a_model_without_gradients_gets_one_clear_line():
    x, y = small_data(70)
    with pytest.raises(DataError, match=r"no gradients flow through the model .*--recipe verifix") as caught:
        verifix.correct(Closed().eval(), (x, y), recipe="finetune", progress=False)
    assert "\n" not in str(caught.value)
    assert verifix.correct(Closed().eval(), (x, y), recipe="verifix", progress=False).curve


def test_parameters_of_a_scripted_part_are_no_obstacle():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated, but users' models have it
        part = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
        x, y = small_data(70)
        model = nn.Sequential(nn.Linear(8, 8), part, nn.Linear(8, 3)).eval()
        chosen, every = (
            verifix.correct(model, (x, y), recipe="finetune", progress=False, **settings)
            for settings in ({"include": ["0.*", "2.*"]}, {})
        )
    for correction in (chosen, every):
        (choice,) = correction.choices.values()
        assert choice.points
    assert all(p.requires_grad for p in model.parameters())


def test_nothing_to_train_is_an_obstacle(lend, monkeypatch):
    context = lend(small_net().eval(), *small_data())
    monkeypatch.setattr(finetune, "trainable", lambda _: [])
    assert FineTune(context).obstacle() == "no parameter may be changed"
