"""`verifix correct`: read, correct, measure, write."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from verifix.algorithm import correct
from verifix.capture.saved_moments import SavedMoments
from verifix.cli.commands.common import (
    check_names,
    device_wanted,
    known_weights,
    open_checkpoint,
    open_model,
    weights_of,
)
from verifix.cli.commands.dry_run import DryRun, dry_run
from verifix.cli.commands.places import check_there, read_by, written_by
from verifix.cli.commands.record import examples, files_read, peak_memory, spectra, spelled_command, task_of, versions
from verifix.cli.commands.tested import check_weighted, kept_of, read_beside, read_test
from verifix.cli.commands.told import correct_text
from verifix.cli.commands.uploaded import uploaded
from verifix.cli.options import CorrectCommand
from verifix.correction import Correction
from verifix.errors import UsageError
from verifix.evaluation.draw import judged
from verifix.evaluation.provable import check_provable
from verifix.inspection import collect_moments
from verifix.io.checkpoints.checkpoint import Checkpoint
from verifix.io.checkpoints.undo_record import correction_path
from verifix.io.data.open import open_data
from verifix.io.data.preparation import Preparation
from verifix.io.data.preprocessing import prepare
from verifix.io.data.subsample import limited
from verifix.model import ranks
from verifix.model.samples import Samples, read_samples
from verifix.model.sources import Source
from verifix.options import CorrectOptions
from verifix.progress import note, notes_kept, one_bar
from verifix.proof import Proof, estimated_seconds, halves, measured, prove, seconds_of_proof
from verifix.recipe.plan import minimum_samples
from verifix.report import Result, as_json, model_card, render, result_of
from verifix.report.files import fill_text
from verifix.report.hub import check_hub
from verifix.report.result import TrustedRecord
from verifix.selection.trusted import Trusted, trust
from verifix.storage.atomic import Output, write_together
from verifix.storage.tensors import fill_safetensors


@dataclass(frozen=True)
class _Inputs:
    """What a command has read.

    Attributes
    ----------
    checkpoint, model
        The weights, and the model with them, on the device wanted.
    preparation
        How samples become inputs.
    verified
        The samples to correct from: verified ones, or those picked from `trusted`.
    trusted
        How they were picked; None for verified ones.
    test
        The test samples; None if there are none.
    kept
        Which of them to use: those that the correction is not made from.
    earlier
        Moments of earlier samples; None if there are none.
    beside
        Inputs whose labels are not known, as `verifix.correct` takes them; none is a verified or test sample.
    notes
        What a user should know about the samples, one line each.
    """

    checkpoint: Checkpoint
    model: nn.Module
    preparation: Preparation
    verified: Samples
    trusted: Trusted | None
    test: Samples | None
    kept: Sequence[int]
    earlier: SavedMoments | None
    beside: Mapping[str, Samples]
    notes: list[str]

    @cached_property
    def weights(self) -> Any:
        """How much each verified sample counts where a gain is measured, as their records say it; else None."""
        return known_weights(self.verified)


def run_correct(command: CorrectCommand) -> tuple[int, Result | DryRun, str]:
    """Correct a checkpoint, prove the gain, and write it if it is proved; see `CorrectCommand`."""
    later = partial(seconds_of_proof, folds=command.folds) if command.proves_by == "nested" else None
    with one_bar("correct", command.progress, later):
        return _run(command)


def _run(command: CorrectCommand) -> tuple[int, Result | DryRun, str]:
    start = time.perf_counter()
    inputs = _read(command)
    if command.dry_run:
        return dry_run(inputs.model, inputs.verified, _settings(inputs, command), command, tuple(inputs.notes))
    correction, proof = _correct_and_prove(inputs, command)
    for remark in correction.notes:
        note(remark)
    outputs: list[Output] = []
    if correction.changed and _may_write(proof, command):
        verdict = None if proof is None else proof.verdict
        outputs = outputs_of(correction, inputs.model, inputs.checkpoint, command.out, verdict)
    result = _result(inputs, correction, proof, command, *(str(output.path) for output in outputs))
    if command.save_moments is not None:
        outputs.append(output_of_moments(_moments(inputs, command), command.save_moments))
    shown = spectra(correction) if command.shows else None
    result = replace(result, spectra=shown, seconds=round(time.perf_counter() - start, 2), memory_bytes=peak_memory())
    outputs += _about(result, command)
    if outputs:
        ranks.only_first(lambda: write_together(outputs, force=command.force))
    text = _text(inputs, correction, proof, result, command)
    return (3 if result.out is None else 0), result, text + uploaded(result, command.push_to_hub)


def _text(inputs: _Inputs, correction: Correction, proof: Proof | None, result: Result, command: CorrectCommand) -> str:
    return correct_text(correction, proof, inputs.trusted, result, verbose=command.verbose)


def _read(command: CorrectCommand) -> _Inputs:
    """Read and check all there is, before the long work begins."""
    check_there(command)
    if not command.model.startswith("py:"):  # whose module may register stages
        minimum_samples(command)
    checkpoint = open_checkpoint(command)
    checkpoint.refuse_corrected()
    ranks.only_first(lambda: _check_files(command, checkpoint))
    model = open_model(command, checkpoint).to(device_wanted(command.device))
    checkpoint.check_writable(model, command.exclude or ())
    _check_count(command)
    preparation = prepare(model, command.model, command)
    checked = command.check_labels and command.trusted is None  # else an order that is wrong would go unnoticed
    preparation = replace(preparation, sorted_names=checked)
    earlier = _earlier(command, preparation)
    with notes_kept() as noted:
        source = limited(open_data(command.data, command, preparation), command.limit, command.seed)
    preparation = check_names(model, source, preparation)
    with notes_kept() as noted_on_test:
        test = None if command.test is None else read_test(model, command.test, command, preparation)
    trusted = None if command.trusted is None else _trust(model, source, command)
    with notes_kept() as noted_on_reading:
        chosen = source if trusted is None else trusted.source
        verified = read_samples(chosen, command.batch_size, command.progress, most=command.max_samples)
    if command.proves_by in ("nested", "split"):
        check_provable(len(verified), command.proves_by, command)
    kept, notes = ([], []) if test is None else kept_of(test, verified, earlier)
    with notes_kept() as noted_on_others:
        beside = read_beside(model, [verified, *([] if test is None else [test])], command, preparation)
    return _Inputs(
        checkpoint,
        model,
        preparation,
        verified,
        trusted,
        test,
        kept,
        earlier,
        beside,
        [*noted, *noted_on_reading, *noted_on_test, *notes, *noted_on_others],
    )


def _check_count(command: CorrectCommand) -> None:
    """Refuse to pick too few samples; only now, as a recipe may name a stage that the model's module has registered."""
    needed = minimum_samples(command)
    if command.picks[1] < needed:
        raise UsageError(
            f"--trusted-count is {command.trusted_count}; with this alpha and these folds it must be {needed} or more"
        )


def _result(
    inputs: _Inputs,
    correction: Correction,
    proof: Proof | None,
    command: CorrectCommand,
    out: str | None = None,
    correction_file: str | None = None,
) -> Result:
    """Return what was found, and where it will be written."""
    checkpoint, model, preparation = inputs.checkpoint, inputs.model, inputs.preparation
    held = checkpoint.dtypes(model)
    dtypes = sorted({str(held[name]).removeprefix("torch.") for name in correction.corrected})
    samples = inputs.verified if inputs.test is None else inputs.test
    return replace(
        result_of(correction, proof),
        trusted=None if inputs.trusted is None else TrustedRecord(**inputs.trusted.as_dict()),
        examples=examples(proof, samples, preparation) if proof is not None and command.shows else (),
        out=out,
        correction_file=correction_file,
        moments_file=command.save_moments,
        model=command.model,
        task=task_of(samples),
        preprocessing=_prepared(inputs),
        weights=checkpoint.kind(model),
        weights_dtypes=tuple(dtypes),
        notes=(*checkpoint.notes(model), *inputs.notes, *correction.notes),
        files=files_read(command),
        command=spelled_command(command),
        seed=command.seed,
        versions=versions(),
    )


def _prepared(inputs: _Inputs) -> str:
    """Return how the samples became inputs; those of the test may be kept in another form."""
    ways = [samples.source.prepared for samples in (inputs.verified, inputs.test) if samples is not None]
    return ways[0] if len(set(ways)) == 1 else "; test samples: ".join(ways)


def _settings(inputs: _Inputs, command: CorrectCommand) -> dict[str, Any]:
    """Return the settings of the correction, which are those of its proof as well."""
    apart = {"device", "moments", "groups", "unlabelled", "noisy"}  # samples know the groups that were read with them
    settings = {f.name: getattr(command, f.name) for f in fields(CorrectOptions) if f.name not in apart}
    # An accuracy of weighted samples is compared where the weights are; one of picked samples is not compared at all.
    expected = None if command.weighted or command.trusted is not None else command.expect_accuracy
    stored_as = inputs.checkpoint.dtypes(inputs.model)
    own: dict[str, Any] = {"moments": inputs.earlier, "stored_as": stored_as, "drawn": _drawn(inputs, command)}
    own |= {"classes": inputs.preparation.class_names, **inputs.beside}
    return settings | own | {"check_inputs": command.stops, "expect_accuracy": expected}


def _drawn(inputs: _Inputs, command: CorrectCommand) -> str | None:
    """Return how the verified samples were drawn: a mixed set without selected samples is a random one."""
    if command.drawn == "mixed" and inputs.weights is not None and (inputs.weights > 0).all():
        return "random"
    return command.drawn


def _weights(inputs: _Inputs, command: CorrectCommand, used: Sequence[int]) -> Any:
    """Return how much each verified sample counts where the gain is measured; None if all count the same."""
    if inputs.weights is not None:
        return inputs.weights
    return weights_of(command, inputs.verified.labels, inputs.preparation.class_names, used)


def _correct_and_prove(inputs: _Inputs, command: CorrectCommand) -> tuple[Correction, Proof | None]:
    """Correct, and measure the gain on samples that the correction has not seen, if there are any."""
    kind = command.proves_by
    shown: dict[str, Any] = {"seed": command.seed, "show": command.progress}
    model, verified, test, settings = inputs.model, inputs.verified, inputs.test, _settings(inputs, command)
    asked = settings | {"spectra": command.shows}
    if test is not None:
        weights = weights_of(command, test.labels, inputs.preparation.class_names, inputs.kept)
        inputs.notes.extend(check_weighted(model, test, inputs.kept, weights, "test", command))
        correction = correct(model, verified, **asked)
        return correction, measured("test", model, correction, test, inputs.kept, weights, used=verified, **shown)
    if kind == "none":
        return correct(model, verified, **asked), None
    if kind == "split":
        correcting, proving = halves(verified, command.seed)
        weights = _weights(inputs, command, proving)
        proving = judged(settings["drawn"], weights, proving, len(verified))
        inputs.notes.extend(check_weighted(model, verified, proving, weights, "verified", command))
        used = verified.subset(correcting)
        correction = correct(model, used, **asked)
        shown |= {"used": used, "drawn": settings["drawn"]}
        return correction, measured("split", model, correction, verified, proving, weights, **shown)
    weights = _weights(inputs, command, range(len(verified)))
    judged(settings["drawn"], weights, range(len(verified)), len(verified))  # before the long work begins
    inputs.notes.extend(check_weighted(model, verified, range(len(verified)), weights, "verified", command))
    start = time.perf_counter()
    correction = correct(model, verified, **asked)
    if not correction.changed:
        return correction, None
    expected = estimated_seconds(correction, time.perf_counter() - start, command.folds)
    checked = {"check_labels": False, "check_inputs": False, "expect_accuracy": None}  # by now
    proof = prove(model, verified, weights=weights, **settings | checked)
    return correction, replace(proof, estimated=expected)


def _may_write(proof: Proof | None, command: CorrectCommand) -> bool:
    """Only what is proved is written, unless the user takes it as it is."""
    return command.force or command.proof == "none" or (proof is not None and proof.verdict == "improved")


def _check_files(command: CorrectCommand, checkpoint: Checkpoint) -> None:
    """Refuse outputs that cannot be written, or that are inputs, before any work is done."""
    if command.push_to_hub is not None:
        check_hub(command.push_to_hub)
    out = Path(command.out)
    further = written_by(command)
    further.remove(out)
    checkpoint.check_outputs(out, [correction_path(out), *further], read_by(command), force=command.force)


def _earlier(command: CorrectCommand, preparation: Preparation) -> SavedMoments | None:
    """Read the moments of earlier samples, which must have been prepared as those of now."""
    if command.moments is None:
        return None
    earlier = SavedMoments.load(str(command.moments))
    earlier.check_preparation(preparation.steps)
    return earlier


def _trust(model: nn.Module, source: Source, command: CorrectCommand) -> Trusted:
    """Pick samples whose label is probably right."""
    method, count = command.picks
    return trust(
        model,
        source,
        method=method,
        count=count,
        batch_size=command.batch_size,
        seed=command.seed,
        progress=command.progress,
        outputs=command.outputs,
        max_samples=command.max_samples,
    )


def _moments(inputs: _Inputs, command: CorrectCommand) -> SavedMoments:
    """Collect the moments of the verified samples in float64, which leaves the correction what it is without them."""
    collected = collect_moments(
        inputs.model,
        inputs.verified,
        include=command.include,
        exclude=command.exclude,
        batch_size=command.batch_size,
        padding=command.padding,
        verified_from=command.verified_from,
        progress=command.progress,
    )
    return replace(collected, preparation=inputs.preparation.steps)


def outputs_of(
    correction: Correction, model: nn.Module, checkpoint: Checkpoint, out: str, verdict: str | None
) -> list[Output]:
    """Return the corrected checkpoint and its correction file, as they will be written.

    Parameters
    ----------
    correction
        The correction.
    model, checkpoint
        The uncorrected model, and where its weights come from.
    out
        Where to write the checkpoint; the correction file lies beside it.
    verdict
        What the proof says; None if there is none.

    Returns
    -------
    list of Output
        The checkpoint, then the correction file.
    """
    provenance = {
        **correction.provenance,
        "strengths": correction.strengths,
        "weights": checkpoint.kind(model),
        "verdict": verdict,
    }
    update = checkpoint.spread(model, correction.corrected)
    output, record = checkpoint.output(out, update, provenance, correction.original)
    return [
        output,
        Output(correction_path(out), lambda path: fill_safetensors(path, *correction.content(record))),
    ]


def output_of_moments(moments: SavedMoments, path: str) -> Output:
    """Return a moments file, as it will be written."""
    return Output(Path(path), lambda temporary: fill_safetensors(temporary, *moments.content()))


def _about(result: Result, command: CorrectCommand) -> list[Output]:
    """Return the files that tell what was found, as far as they were asked for."""
    wanted = ((command.result, as_json), (command.report, render), (command.card, model_card))
    return [Output(Path(path), partial(fill_text, text=spell(result))) for path, spell in wanted if path is not None]
