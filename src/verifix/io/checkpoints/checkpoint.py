"""Checkpoints in, checkpoints out: same format, keys, nesting, dtypes and ties, and nothing else touched."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from verifix.correction import Correction, Record
from verifix.errors import CheckpointError, UsageError, VerifixError, one_line
from verifix.io.checkpoints.key_matching import Fit, choose_fit, few, fits, listed, place
from verifix.io.checkpoints.loading import first_names, holders, is_extra, load, shape_of
from verifix.io.checkpoints.sharded import INDEX, WEIGHTS, Folder
from verifix.io.checkpoints.state_dict import Found
from verifix.io.checkpoints.undo_record import change, correction_path
from verifix.io.checkpoints.weight_file import SUFFIXES, TORCH, Part
from verifix.model.tensors import tensor_digest
from verifix.model.weights import tensors_of
from verifix.storage.atomic import Output, check_apart, check_output, file_digest
from verifix.storage.transaction import settle

UNHELD = (
    "the model's load_state_dict does not read them, or changes them; save what it loads with "
    "torch.save(model.state_dict(), …) and give that, or leave them out with --exclude"
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read.

    Attributes
    ----------
    path
        The file or folder.
    parts
        The files that hold its weights.
    found
        The state dict to use; its tensors are the very ones in the parts.
    weights
        Which weights were asked for: "auto", "raw" or "ema".
    folder
        The folder around the parts; None for a single file.
    """

    path: Path
    parts: tuple[Part, ...]
    found: Found
    weights: str = "auto"
    folder: Folder | None = None

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The tensors of the state dict by key."""
        return self.found.tensors

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of all files."""
        return {key: value for part in self.parts for key, value in part.metadata.items()}

    @property
    def files(self) -> dict[str, Part]:
        """The parts by file name; the name of a single file is empty."""
        return {"" if self.folder is None else part.path.name: part for part in self.parts}

    def fit(self, model: nn.Module) -> Fit:
        """Find the model's weights among the keys.

        Parameters
        ----------
        model
            The model.

        Returns
        -------
        Fit
            Which key is which weight.

        Raises
        ------
        CheckpointError
            If keys are missing or unexpected, the weights wanted are not there, or they are there more than once.
        """
        return choose_fit(model, self.found, self.weights, self.path)

    def kind(self, model: nn.Module) -> str:
        """Tell which weights are used: "raw" or "ema"."""
        return "ema" if self.found.kind == "ema" or self.fit(model).averaged else "raw"

    def notes(self, model: nn.Module) -> list[str]:
        """Say what of the checkpoint is used and what is left as it is, where that is not plain.

        Parameters
        ----------
        model
            The model.

        Returns
        -------
        list of str
            One line each.
        """
        fit, words = self.fit(model), {"raw": "raw", "ema": "averaged (EMA)"}
        places = {kind: found.place for kind, found in self.parts[0].found.items()}
        if len(places) == 1:  # one state dict may hold both, behind different prefixes
            places = {"ema" if each.averaged else "raw": each.prefix for each in fits(model, self.found.matchable)}
        used = self.kind(model)
        notes = []
        if len(places) == 2:
            other = "raw" if used == "ema" else "ema"
            notes.append(
                f"Used the {words[used]} weights ({places[used] or 'no prefix'}); the {words[other]} ones "
                f"({places[other] or 'no prefix'}) are unchanged: --weights {other} uses those."
            )
        elif used == "ema":
            notes.append("Used averaged (EMA) weights; the checkpoint has no others.")
        if outside := [key for key in fit.outside if key.rpartition(".")[2] != "n_averaged"]:
            notes.append(f"Unchanged, because the model has no such weights: {listed(outside)}.")
        if self.folder is not None and self.folder.left_out:
            notes.append(f"Left out, because they hold the same weights uncorrected: {listed(self.folder.left_out)}.")
        return notes

    def load_into(self, model: nn.Module) -> None:
        """Load the weights strictly.

        Parameters
        ----------
        model
            The model to fill.

        Raises
        ------
        CheckpointError
            If keys, shapes or kinds of numbers do not fit; names the first few.
        """
        entries = self.fit(model).entries(model, self.found)
        self._check_values(entries, model.state_dict())
        self._held(model)
        try:
            load(model, entries)
        except Exception as error:  # hooks and extra state are the model's own code
            raise CheckpointError(
                f"{self.path} does not load into the model ({type(error).__name__}: {one_line(error, 200)}); give the "
                "checkpoint of this model"
            ) from error

    def _check_values(self, entries: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Refuse shapes and kinds of numbers that do not fit, where the model saves an entry by the same name."""
        state = {
            name: value
            for name, value in entries.items()
            if isinstance(value, Tensor) and isinstance(wanted.get(name), Tensor) and not is_extra(name)
        }
        wrong = [
            f"{name} {list(value.shape)} instead of {list(wanted[name].shape)}"
            for name, value in state.items()
            if shape_of(wanted[name]) not in (None, value.shape)
        ]
        if wrong:
            raise CheckpointError(
                f"{self.path} does not fit the model: {few('shapes', wrong)}; check the number of classes"
            )
        whole = [
            f"{name} {value.dtype}{'' if value.layout == torch.strided else f' {value.layout}'}"
            for name, value in state.items()
            if wanted[name].is_floating_point() and (not value.is_floating_point() or value.layout != torch.strided)
        ]
        if whole:
            raise CheckpointError(
                f"{self.path} does not fit the model: {few('weights that are not plain floating-point numbers', whole)}"
                "; give the checkpoint from before it was quantised or converted"
            )

    def _held(self, model: nn.Module) -> dict[str, list[str]]:
        """Return the keys that hold each parameter and buffer, by its first name; a tied one may have several."""
        fit = self.fit(model)
        held = holders(model, fit.entries(model, self.found))
        keys = {own: [*dict.fromkeys(fit.keys[x] for x in names if x in fit.keys)] for own, names in held.items()}
        for one, *others in filter(None, keys.values()):
            for other in others:
                if tensor_digest(self.state[one]) != tensor_digest(self.state[other]):
                    raise CheckpointError(
                        f"{self.path} has different values for {one!r} and {other!r}, which are one weight in the "
                        "model; give the checkpoint of this model"
                    )
        return {own: names for own, names in keys.items() if names}

    def check_writable(self, model: nn.Module, exclude: Sequence[str] = ()) -> None:
        """Check that the file can hold new values of all parameters, before any are computed.

        Parameters
        ----------
        model
            The model.
        exclude
            Patterns of parameters that get no new values.

        Raises
        ------
        CheckpointError
            If the model changes parameters when it loads them, or does not load them from the file.
        """
        held, first = self._held(model), first_names(model)
        unheld = [
            name
            for name, parameter in model.named_parameters()
            if parameter.is_floating_point()
            and first[name] not in held
            and not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)
        ]
        if unheld:
            raise CheckpointError(f"{self.path} cannot hold new values for {few('parameters', unheld)}: {UNHELD}")

    def refuse_corrected(self) -> None:
        """Refuse a checkpoint that has been corrected already.

        Raises
        ------
        CheckpointError
            If its metadata, or a correction file beside it, says so.
        """
        if "verifix" in self.metadata or self._matches_correction_beside():
            raise CheckpointError(
                f"{self.path} has been corrected already, and a second correction is not allowed; "
                "give the original checkpoint"
            )

    def _matches_correction_beside(self) -> bool:
        beside = correction_path(self.path if self.folder is None else self.folder.root)
        try:
            after = Correction.load(beside).corrected
        except VerifixError:
            return False
        digests = set(map(tensor_digest, self.state.values()))
        dtypes = {tensor.dtype for tensor in self.state.values() if tensor.is_floating_point()}
        return any(tensor_digest(value.to(dtype)) in digests for value in after.values() for dtype in dtypes)

    def _check_format(self, out: Path) -> None:
        """Check that the name fits the format, which is that of the original, and that a folder can be copied."""
        if self.folder is not None:
            self.folder.check_copyable()
            if out.name.endswith((*SUFFIXES, INDEX)):
                raise UsageError(f"{out} and {self.path} differ in format; name a folder with --out")
            if self.folder.root.resolve() in out.resolve().parents:
                raise UsageError(
                    f"{out} is in the folder of the checkpoint, {self.folder.root}; name one outside of it"
                )
            return
        allowed = (".safetensors",) if self.parts[0].is_safetensors else TORCH
        if not out.name.endswith(allowed):
            raise UsageError(f"{out} and {self.path} differ in format; end --out in {' or '.join(allowed)}")

    def check_outputs(self, out: Path, others: Sequence[Path], inputs: Sequence[str | Path], *, force: bool) -> None:
        """Check all that a command will write beside this checkpoint's corrected copy, before it begins.

        Parameters
        ----------
        out
            The corrected copy.
        others
            Further files.
        inputs
            What the command reads beside this checkpoint.
        force
            Allow outputs that exist.

        Raises
        ------
        UsageError
            If they are not apart, one cannot be written, or the copy's name does not fit the original's format.
        CheckpointError
            If the folder of this checkpoint cannot be copied.
        """
        for path in (out, *others):
            settle(path)
        self._check_format(out)
        inputs = [*inputs, self.path if self.folder is None else self.folder.root]
        check_apart([out, *others], inputs)
        check_output(out, force=force, folder=self.folder is not None, marks=WEIGHTS)
        for path in others:
            check_output(path, force=force)

    def dtypes(self, model: nn.Module) -> dict[str, torch.dtype]:
        """Return the dtype in which this checkpoint holds each parameter of the model."""
        held, first = self._held(model), first_names(model)
        return {name: self.state[held[first[name]][0]].dtype for name in tensors_of(model) if first[name] in held}

    def spread(self, model: nn.Module, update: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return new values of parameters by the keys of this checkpoint; a tied weight may have several.

        Parameters
        ----------
        model
            The model.
        update
            New values by the model's names.

        Returns
        -------
        dict
            By key.

        Raises
        ------
        CheckpointError
            If two weights of the model are one in the file, or the file has none for one, so that it cannot hold both.
        """
        held, first = self._held(model), first_names(model)
        changed = {first[name]: value for name, value in update.items()}
        owners: dict[object, tuple[str, str]] = {}
        for own, keys in held.items():
            for key in keys:
                owner, other = owners.setdefault(place(self.state[key]), (own, key))
                if owner != own and {owner, own} & changed.keys():
                    raise CheckpointError(
                        f"{self.path} has one tensor for {other!r} and {key!r}, which are two weights in the model; "
                        "tie them in the model too"
                    )
        unheld = [name for name in changed if name not in held]
        if unheld:
            raise CheckpointError(f"{self.path} cannot hold new values for {few('parameters', unheld)}: {UNHELD}")
        return {key: value for own, value in changed.items() for key in held[own]}

    def output(
        self,
        out: str | Path,
        update: Mapping[str, Tensor],
        provenance: Mapping[str, Any],
        original: Mapping[str, Tensor] | None = None,
    ) -> tuple[Output, Record]:
        """Put new values into this checkpoint's tensors, and say how to write it.

        Parameters
        ----------
        out
            Where to: a file, or a folder if the checkpoint has one.
        update
            New values by key; rounded to the dtype that the checkpoint has.
        provenance
            Plain data for the mark of files with changed tensors.
        original
            Values from before that the correction file holds anyway.

        Returns
        -------
        output : Output
            What to write.
        record : Record
            What becomes of the files.
        """
        record = change(self.files, self.folder, self.state, update, original or {})
        provenance = {**provenance, "source_sha256": {part.path.name: part.sha256 for part in self.parts}}
        changed = [name for name, said in record.about["files"].items() if said["changed"]]
        return self.writing(out, {name: self.files[name].marked(provenance) for name in changed}), record

    def writing(self, out: str | Path, heads: Mapping[str, bytes]) -> Output:
        """Say how to write this checkpoint with the values that its tensors have now.

        Parameters
        ----------
        out
            Where to.
        heads
            For the files that have changed, their header or comment.

        Returns
        -------
        Output
            What to write.
        """
        if self.folder is None:
            (part,) = self.parts
            return Output(Path(out), partial(part.write, head=heads.get("", part.head)))
        fill = partial(_fill, folder=self.folder, parts=self.files, heads=heads)
        return Output(Path(out), fill, folder=True, marks=WEIGHTS)


def _fill(root: Path, *, folder: Folder, parts: Mapping[str, Part], heads: Mapping[str, bytes]) -> None:
    """Fill the folder of a corrected checkpoint: files without a changed tensor are copied byte for byte."""
    folder.check_copyable()
    for name in folder.others:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder.root / name, root / name)
    for name, part in parts.items():
        target = root / name
        if name in heads:
            part.write(target, heads[name])
            shutil.copymode(part.path, target)
        else:
            shutil.copy2(part.path, target)
            if file_digest(target) != part.sha256:
                raise CheckpointError(f"{part.path} was changed after it was read; run again")
