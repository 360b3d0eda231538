"""A meta-estimator for scikit-learn."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from verifix.algorithm import correct
from verifix.errors import DataError, UsageError, first_of
from verifix.losses import probabilities
from verifix.model.answers import predicted
from verifix.model.outputs import understood
from verifix.model.samples import Samples, read_samples
from verifix.model.tensors import device_of


class CorrectedClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """A trained torch classifier that `fit` corrects from samples with verified labels.

    Parameters
    ----------
    estimator
        The trained classifier: a fitted net of skorch, or a module that returns logits. It is not changed.
    classes
        The label of each output, in order. By default, those of the net; for a module, the sorted labels of `fit` if
        there are as many as outputs, else 0, 1, ….
    verified_from
        Where the verified samples come from; see `verifix.correct`.
    recipe, alpha, seed
        See `verifix.correct`.
    prove
        Whether `fit` also measures the gain on held-out samples; see `verifix.prove`.
    settings
        Further settings of `verifix.correct`, by name.

    Attributes
    ----------
    classes_
        The label of each output, in order.
    correction_
        The `Correction`.
    proof_
        The `Proof`; None without `prove`, or if no change won.
    estimator_
        The corrected classifier, of the kind that was given.
    n_features_in_
        Features of an input, if it has one axis.

    Examples
    --------
    >>> from verifix.integrations import CorrectedClassifier
    >>> module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
    >>> CorrectedClassifier(module, verified_from="unseen", recipe="verifix", alpha=100.0).fit(X, y).predict(X).shape
    (60,)
    """

    def __init__(
        self,
        estimator: Any,
        *,
        classes: Sequence[Any] | None = None,
        verified_from: str | None = None,
        recipe: Any = "auto",
        alpha: Any = "auto",
        seed: int = 0,
        prove: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.estimator = estimator
        self.classes = classes
        self.verified_from = verified_from
        self.recipe = recipe
        self.alpha = alpha
        self.seed = seed
        self.prove = prove
        self.settings = settings

    def fit(self, X: Any, y: Any) -> CorrectedClassifier:  # noqa: N803  # scikit-learn's name
        """Correct the classifier.

        Parameters
        ----------
        X
            Inputs of the verified samples ``[n, ...]``.
        y
            Their labels ``[n]``.

        Returns
        -------
        CorrectedClassifier
            The same object.

        Raises
        ------
        UsageError
            If the estimator is no trained torch classifier, or a proof is wanted without `verified_from`.
        DataError
            If labels are none of the classes.
        """
        X, y = validate_data(self, X, y, allow_nd=True, ensure_min_samples=2)  # noqa: N806
        check_classification_targets(y)
        module = _module_of(self.estimator)
        inputs = _tensor(X, module)
        self.classes_ = self._labels(module, inputs, y)
        verified = inputs, torch.from_numpy(self._places(y))
        settings = {"recipe": self.recipe, "alpha": self.alpha, "seed": self.seed, "progress": False}
        settings |= {} if self.verified_from is None else {"verified_from": self.verified_from}
        settings |= dict(self.settings or {})
        if self.prove and settings.get("verified_from") is None:
            raise UsageError("a proof needs verified_from: give 'unseen' if the model was not trained on the samples")
        self.correction_ = correct(module, verified, **settings)
        asked = self.prove and self.correction_.changed
        self.proof_ = self.correction_.prove() if asked else None
        self.estimator_: Any = self.correction_.model
        if self.estimator is not module:
            self.estimator_ = copy.deepcopy(self.estimator)
            self.correction_.apply_(self.estimator_.module_)
        return self

    def predict(self, X: Any) -> np.ndarray[Any, Any]:  # noqa: N803
        """Return the predicted label of each input, ``[n]``."""
        chances = self.predict_proba(X)
        labels: np.ndarray[Any, Any] = self.classes_[chances.argmax(axis=1)]
        return labels

    def predict_proba(self, X: Any) -> np.ndarray[Any, Any]:  # noqa: N803
        """Return the probability of each class, ``[n, classes]``."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, allow_nd=True)  # noqa: N806
        module = self.correction_.model
        logits = _logits(module, _tensor(X, module), self.correction_.provenance["outputs"])
        chances: np.ndarray[Any, Any] = probabilities(logits).numpy()
        return chances

    def _labels(self, module: nn.Module, inputs: Tensor, y: Any) -> np.ndarray[Any, Any]:
        own = self.classes if self.classes is not None else getattr(self.estimator, "classes_", None)
        if own is not None:
            return np.asarray(own)
        with torch.no_grad():
            outputs = max(_logits(module, inputs[:1], "logits").shape[1], 2)
        found = np.unique(y)
        return found if len(found) == outputs else np.arange(outputs)

    def _places(self, y: Any) -> np.ndarray[Any, Any]:
        """Return which output each label belongs to."""
        place = {label: i for i, label in enumerate(self.classes_.tolist())}
        unknown = sorted({str(label) for label in y.tolist() if label not in place})
        if unknown:
            raise DataError(
                f"the labels {first_of(unknown)} are none of the classes {first_of(self.classes_)}; give the label of "
                "each output with classes="
            )
        return np.array([place[label] for label in y.tolist()], dtype=np.int64)


def _module_of(estimator: Any) -> nn.Module:
    """Return the module of a fitted net of skorch, or the module itself."""
    if isinstance(estimator, nn.Module):
        return estimator
    if hasattr(estimator, "initialize") and hasattr(estimator, "module"):
        check_is_fitted(estimator, "module_")
        module: nn.Module = estimator.module_
        return module
    raise UsageError(
        f"estimator is a {type(estimator).__name__}; it must be a torch.nn.Module, or a fitted net of skorch"
    )


def _tensor(array: Any, module: nn.Module) -> Tensor:
    """Return inputs as a module takes them: whole numbers if it looks them up, else of the dtype of its weights."""
    if array.dtype.kind in "iu" and any(isinstance(part, nn.Embedding) for part in module.modules()):
        return torch.from_numpy(array.astype(np.int64))
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64)).to(dtype)


def _logits(module: nn.Module, inputs: Tensor, outputs: Any) -> Tensor:
    samples: Samples = read_samples((inputs, torch.zeros(len(inputs), dtype=torch.long)))
    samples, _ = understood(module, samples, device_of(module), outputs)
    return predicted(module, samples, range(len(inputs)))
