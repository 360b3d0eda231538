"""The meta-estimator under scikit-learn's own checks, and with a net of skorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from tests.integrations.noisy_digits import VERIFIED, accuracy, digits, network, trained, verified
from verifix import DataError, UsageError
from verifix.integrations import CorrectedClassifier

SETTINGS = {name: value for name, value in VERIFIED.items() if name in ("drawn",)}


class Fresh(CorrectedClassifier):
    """One whose network is made for the data of each check, as a trained network has a fixed number of features."""

    def __init__(self, estimator=None, *, alpha=1.0, seed=0):
        super().__init__(estimator, verified_from="unseen", recipe="verifix", alpha=alpha, seed=seed)

    def fit(self, X, y):  # noqa: N803
        shown = np.asarray(X) if not hasattr(X, "toarray") else X
        features = shown.shape[1] if getattr(shown, "ndim", 0) == 2 else 1
        classes = max(len(np.unique(np.asarray(y).astype(str))) if y is not None else 2, 2)
        given, self.estimator = self.estimator, nearest(shown, y, features, classes)
        self.settings = {"check_inputs": False, "check_labels": False}
        try:
            return super().fit(X, y)
        finally:
            self.estimator = given
            del self.settings


def nearest(X, y, features, classes):  # noqa: N803
    """Return a network that answers with the class of the nearest mean."""
    torch.manual_seed(0)
    layer = nn.Linear(max(features, 1), classes)
    try:
        x, labels = np.asarray(X, dtype=float), np.asarray(y).ravel()
        means = np.stack([x[labels == c].mean(0) for c in np.unique(labels)])
        layer.weight.data[: len(means)] = torch.from_numpy(means).float()
        layer.bias.data[: len(means)] = torch.from_numpy(-(means**2).sum(1) / 2).float()
    except (TypeError, ValueError, RuntimeError, IndexError):
        pass  # the check hands over what `fit` has to refuse
    return nn.Sequential(layer)


EXPECTED = {
    "check_classifiers_one_label": "a trained network has the classes of its training, whatever few the samples show",
}
"""Checks that cannot pass, and why."""


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([Fresh()], expected_failed_checks=lambda _: EXPECTED)
def test_scikit_learn_accepts_it(estimator, check):
    check(estimator)


def test_a_module_is_corrected_with_labels_of_any_kind():
    module, original = trained(), trained()
    x, y = verified()
    names = np.array([f"digit {i}" for i in range(10)])
    found = CorrectedClassifier(module, verified_from="unseen", recipe="verifix", prove=True, settings=SETTINGS)
    found.fit(x.numpy(), names[y.numpy()])
    assert found.classes_.tolist() == names.tolist()
    assert found.proof_.verdict == "improved"
    unseen, labels = digits()[0][1200:].numpy(), names[digits()[1][1200:].numpy()]
    assert 100 * found.score(unseen, labels) == pytest.approx(accuracy(found.correction_.model))
    assert 100 * found.score(unseen, labels) > accuracy(original) + 4
    assert np.allclose(found.predict_proba(unseen).sum(1), 1)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), original.parameters(), strict=True))


def test_classes_that_no_sample_shows_are_known():
    x, y = verified()
    few = y < 7
    settings = {"verified_from": "unseen", "recipe": "verifix", "alpha": 100.0}
    found = CorrectedClassifier(trained(), **settings).fit(x[few].numpy(), y[few].numpy())
    assert found.classes_.tolist() == list(range(10))
    assert set(found.predict(x.numpy())) == set(range(10))
    names = [f"digit {i}" for i in range(10)]
    with pytest.raises(DataError, match=r"the labels 0, 1, 2, … are none of the classes digit 0, digit 1, digit 2, …"):
        CorrectedClassifier(trained(), classes=names, **settings).fit(x.numpy(), y.numpy())


def test_a_net_of_skorch_stays_one():
    from skorch import NeuralNetClassifier

    x, y, given = digits()
    net = NeuralNetClassifier(
        network(),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.01,
        max_epochs=80,
        batch_size=1000,
        train_split=None,
        verbose=0,
    )
    found = CorrectedClassifier(net, verified_from="unseen", recipe="verifix")
    with pytest.raises(NotFittedError):
        found.fit(x[1000:1200].numpy(), y[1000:1200].numpy())
    net.fit(x[:1000], given[:1000])
    before = net.score(x[1200:], y[1200:])
    found.fit(x[1000:1200].numpy(), y[1000:1200].numpy())
    assert type(found.estimator_) is NeuralNetClassifier
    assert found.estimator_.score(x[1200:], y[1200:]) == found.score(x[1200:].numpy(), y[1200:].numpy()) > before + 0.04
    assert net.score(x[1200:], y[1200:]) == before


def test_what_is_no_torch_classifier_is_refused():
    from sklearn.linear_model import LogisticRegression

    x, y = (part.numpy() for part in verified())
    with pytest.raises(UsageError, match=r"estimator is a LogisticRegression; it must be a torch\.nn\.Module, or"):
        CorrectedClassifier(LogisticRegression()).fit(x, y)
