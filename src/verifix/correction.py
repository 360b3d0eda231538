"""The result: corrected weights, what was done and why; it applies, undoes, saves and loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from verifix.capture.swapping import blended, swap
from verifix.errors import CheckpointError, UsageError
from verifix.evaluation.presented import Presented, upward
from verifix.model.given import Made
from verifix.model.tensors import sealed, unsealed
from verifix.recipe.candidates import Strength
from verifix.recipe.decision import Choice, Point, spelled
from verifix.recipe.outcome import LayerReport
from verifix.recipe.paths import Path as TriedPath
from verifix.recipe.stages import projection_among
from verifix.recipe.summary import caution_of, summary_of, unverified
from verifix.storage.tensors import read_safetensors, write_safetensors

FORMAT = "verifix-correction-3"
SIDES = ("original/", "corrected/")

UNVERIFIED_SCORES = "score on labels that nobody verified: it chose the strength, and does not estimate a gain"


@dataclass(frozen=True, repr=False, eq=False)
class Correction(Presented):
    """The outcome of `verifix.correct`.

    Attributes
    ----------
    original, corrected
        The changed parameters by name, before and after, on the CPU in the model's own dtypes. Both are empty if no
        change won.
    choices
        For each stage of the best path, the chosen strength, why, and the curve it was chosen from; no strength if that
        path was not taken.
    layers
        One report per parameter of two or more dimensions.
    provenance
        What this was made from: versions, digests of model and samples, and every setting. Plain data.
    spectra
        Eigenvalues of C by parameter, descending, if they were asked for; not saved.
    paths
        What was tried, no change first, each path with its cross-fitted scores. Empty if nothing was to be chosen.
    reason
        Why the best path was taken, or not, in one sentence.
    class_names
        In the order of the outputs; None if they are not known.
    made
        What it was made from, for `prove`; None if it was loaded from a file.
    """

    original: Mapping[str, Tensor]
    corrected: Mapping[str, Tensor]
    choices: Mapping[str, Choice]
    layers: tuple[LayerReport, ...]
    provenance: Mapping[str, Any]
    _model: nn.Module | None = None
    spectra: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    paths: tuple[TriedPath, ...] = ()
    reason: str = ""
    class_names: tuple[str, ...] | None = None
    made: Made | None = field(default=None, repr=False)

    @property
    def model(self) -> nn.Module:
        """The corrected copy of the model, on the device of the one that was given."""
        if self._model is None:
            raise UsageError(
                "a correction that was loaded from a file has no model; call apply_ with the original model"
            )
        return self._model

    @property
    def strengths(self) -> dict[str, Strength | None]:
        """The strength of each stage; None where no change won."""
        return {stage: choice.strength for stage, choice in self.choices.items()}

    @property
    def kept(self) -> str:
        """The stages that were kept, with their strengths, for reading."""
        kept = [f"{stage} {spelled(strength)}" for stage, strength in self.strengths.items() if strength is not None]
        return ", ".join(kept) or "no change"

    @property
    def layer_strengths(self) -> dict[str, dict[str, dict[str, float]]]:
        """What each kept stage did to each layer, as stage → parameter → numbers such as alpha, gate or pull."""
        return {
            stage: {name: dict(numbers) for name, numbers in choice.layers.items()}
            for stage, choice in self.choices.items()
            if choice.strength is not None
        }

    @property
    def alpha(self) -> float | None:
        """The strength α of the projection; None if no change won."""
        stage = projection_among(self.choices)
        return None if stage is None else self.choices[stage].strength  # type: ignore[return-value]

    @property
    def curve(self) -> tuple[Point, ...]:
        """The projection's strength curve, of selection scores, which overstate the gain. Empty if α was given."""
        stage = projection_among(self.choices)
        return () if stage is None else self.choices[stage].points

    @property
    def changed(self) -> bool:
        """Whether any weight is changed at all."""
        return bool(self.corrected)

    @property
    def unverified(self) -> bool:
        """Whether the samples were only picked because their label is probably right."""
        return unverified(self)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was noticed about the samples, such as copies among them or inputs unlike those in training."""
        return tuple(self.provenance.get("notes", ()))

    @property
    def caution(self) -> str:
        """What the scores are not, because of where the samples come from; empty for verified unseen ones."""
        return caution_of(self)

    def blended(self, blend: float = 1.0) -> dict[str, Tensor]:
        """Return new values between no change and the correction.

        Parameters
        ----------
        blend
            0 for the original weights, 1 for the corrected ones; in between, computed in float64 and rounded once.

        Returns
        -------
        dict
            Parameters by name.
        """
        return blended(self.original, self.corrected, blend)

    def apply_(self, model: nn.Module, *, blend: float = 1.0) -> nn.Module:
        """Write the correction into a model that has the original weights.

        Parameters
        ----------
        model
            The model to change in place. It must hold exactly the weights that were corrected.
        blend
            Between 0 (no change) and 1 (the full correction).

        Returns
        -------
        nn.Module
            The same model.

        Raises
        ------
        CheckpointError
            If a weight is not the original one, for example because it is corrected already, or cannot be written to;
            nothing is changed.
        """
        return swap(model, self.original, self.blended(blend), "apply")

    def undo_(self, model: nn.Module, *, blend: float = 1.0) -> nn.Module:
        """Give a corrected model its original weights back, bit for bit.

        Parameters
        ----------
        model
            The model to change in place. It must hold exactly the weights that `apply_` wrote.
        blend
            The blend it was applied with.

        Returns
        -------
        nn.Module
            The same model.

        Raises
        ------
        CheckpointError
            If a weight is not the corrected one, or cannot be written to; nothing is changed.
        """
        return swap(model, self.blended(blend), self.original, "undo")

    @property
    def unchanged_by_rounding(self) -> float:
        """Share, from 0 to 1, of the corrected tensors' entries that are what they were; 0 if none is corrected.

        With weights in half precision it tells how much of the correction was too small to be kept.
        """
        same = sum(int((value == self.original[name]).sum()) for name, value in self.corrected.items())
        return same / max(sum(value.numel() for value in self.corrected.values()), 1)

    def summary(self, verbose: bool = False) -> str:
        """Return what was done and why, for reading.

        Parameters
        ----------
        verbose
            Show every path, strength and layer as well.

        Returns
        -------
        str
            What came out in the first line, then one line per stage.
        """
        return summary_of(self, verbose=verbose)

    def prove(
        self,
        *,
        weights: Any = None,
        verified_from: Literal["unseen", "training", "trusted"] | None = None,
        drawn: Literal["random", "by-class", "suspects", "mixed"] | None = None,
        check_inputs: bool | None = None,
    ) -> Any:
        """Estimate what this correction gains on samples that it has not seen; see `verifix.prove`.

        The samples as they were read and the settings are those of this correction. Its fits are not used: it has
        learned from all samples, and a proof corrects without each fifth of them.

        Parameters
        ----------
        weights
            How much each sample counts, as in `verifix.prove`.
        verified_from, drawn, check_inputs
            As in `verifix.prove`, where the correction was made without them.

        Returns
        -------
        Proof
            The comparison and its verdict; its method ``report`` then writes both.

        Raises
        ------
        UsageError
            If nothing was changed, or the correction was loaded from a file; and what `verifix.prove` raises.
        CheckpointError
            If the model has other weights than those that were corrected.
        """
        said = {"weights": weights, "verified_from": verified_from, "drawn": drawn, "check_inputs": check_inputs}
        return upward("verifix.proof").prove_again(self, **said)

    def __repr__(self) -> str:
        """Show strengths and how many layers changed."""
        strengths = ", ".join(f"{stage}={spelled(strength)}" for stage, strength in self.strengths.items())
        counts = {s: sum(x.status == s for x in self.layers) for s in ("corrected", "kept", "skipped", "unused")}
        return f"Correction({strengths}; layers: {', '.join(f'{n} {s}' for s, n in counts.items() if n)})"

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the weights as plain data."""
        label = {"note": UNVERIFIED_SCORES} if self.unverified else {}
        return {
            "provenance": dict(self.provenance),
            "unverified": self.unverified,
            "strengths": self.strengths,
            "choices": {stage: choice.as_dict() | label for stage, choice in self.choices.items()},
            "paths": [path.as_dict() for path in self.paths],
            "reason": self.reason,
            "class_names": self.class_names,
            "layers": [asdict(layer) for layer in self.layers],
        }

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write a safetensors file with both versions of every changed weight, their SHA-256 and the provenance.

        Parameters
        ----------
        path
            Where to; must not exist.
        force
            Overwrite what is there.

        Returns
        -------
        Path
            The path.
        """
        return write_safetensors(path, *self.content(), force=force)

    def content(self, checkpoint: Record | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return what `save` writes.

        Parameters
        ----------
        checkpoint
            What has become of the files of a checkpoint, so that `verifix undo` can restore them.

        Returns
        -------
        tensors : dict
            By name.
        metadata : dict
            One entry, in JSON. The same inputs give the same.
        """
        tensors = {f"original/{name}": tensor for name, tensor in self.original.items()}
        tensors |= {f"corrected/{name}": tensor for name, tensor in self.corrected.items()}
        if checkpoint is not None:
            tensors |= {f"source/{name}": tensor for name, tensor in checkpoint.tensors.items()}
        about = {
            "format": FORMAT,
            **self.as_dict(),
            **({} if checkpoint is None else {"checkpoint": checkpoint.about}),
        }
        for choice in about["choices"].values():  # times differ from run to run
            choice["estimated"] = choice["seconds"] = None
        for path in about["paths"]:
            path["seconds"] = None
        return tensors, sealed(tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> Correction:
        """Read a correction that `save` wrote, and check every tensor against its SHA-256.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        Correction
            The correction; its `model` is not in the file.

        Raises
        ------
        CheckpointError
            If the file is something else, or damaged.
        """
        return load_with_record(path)[0]


@dataclass(frozen=True)
class Record:
    """What has become of the files of a checkpoint.

    Attributes
    ----------
    about
        Plain data; see `verifix.io.undo`.
    tensors
        Values from before that the file holds in another form than the model, by a name of their own.
    """

    about: dict[str, Any]
    tensors: dict[str, Tensor]


def load_with_record(path: str | Path) -> tuple[Correction, Record | None]:
    """Read a correction, and what has become of a checkpoint's files if it says so.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    correction : Correction
        See `Correction.load`.
    record : Record or None
        None if the correction was saved without a checkpoint.

    Raises
    ------
    CheckpointError
        If the file is something else, or damaged.
    """
    tensors, metadata = read_safetensors(path)
    about = unsealed(path, tensors, metadata, "correction", FORMAT)
    try:
        choices = {stage: Choice.from_dict(choice) for stage, choice in about["choices"].items()}
        layers = tuple(LayerReport(**layer) for layer in about["layers"])
        paths = tuple(TriedPath.from_dict(path) for path in about["paths"])
        reason, names = str(about["reason"]), about.get("class_names")
        provenance = dict(about["provenance"])
        forms = [{name: (x.shape, x.dtype) for name, x in _under(side, tensors).items()} for side in SIDES]
        if forms[0] != forms[1]:
            raise ValueError("the weights before and after differ in name, shape or dtype")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a verifix correction file ({error!r})") from None
    weights = _under("original/", tensors), _under("corrected/", tensors)
    loaded = Correction(
        *weights, choices, layers, provenance, paths=paths, reason=reason, class_names=names and tuple(map(str, names))
    )
    return loaded, Record(about["checkpoint"], _under("source/", tensors)) if "checkpoint" in about else None


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
