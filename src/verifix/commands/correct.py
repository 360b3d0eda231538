"""`verifix correct`: read, correct, measure, write."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from verifix.algorithm import correct
from verifix.borrow import borrowed, device_of
from verifix.budget import duration
from verifix.collect import SavedMoments
from verifix.commands.common import check_names, device_wanted, open_checkpoint, open_model
from verifix.commands.record import examples, files_read, peak_memory, spectra, spelled_command, versions
from verifix.correction import Correction
from verifix.files import Output, fill_safetensors, write_together
from verifix.io.checkpoints import Checkpoint, correction_path
from verifix.io.datasets import open_data
from verifix.io.preprocessing import Preparation, prepare
from verifix.options import CorrectCommand, CorrectOptions
from verifix.progress import tell
from verifix.proof import OUTER_FOLDS, Proof, check_provable, estimated_seconds, halves, measured, prove, without
from verifix.report import SCHEMA, as_json, model_card, render
from verifix.samples import Samples, Source, check_labels, read_samples
from verifix.scoring import predict
from verifix.select import Trusted, trust
from verifix.survey import collect_moments


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
    test_source, test
        The test samples as they were opened, and as they were read; None if there are none.
    """

    checkpoint: Checkpoint
    model: nn.Module
    preparation: Preparation
    verified: Source
    trusted: Trusted | None
    test_source: Source | None
    test: Samples | None


def run_correct(command: CorrectCommand) -> tuple[int, dict[str, Any], str]:
    """Correct a checkpoint, prove the gain, and write it if it is proved; see `CorrectCommand`."""
    start = time.perf_counter()
    inputs = _read(command)
    correction, proof = _correct_and_prove(inputs, command)
    result = _result(inputs, correction, proof, command)
    outputs: list[Output] = []
    if correction.changed and _may_write(proof, command):
        outputs = outputs_of(correction, inputs.model, inputs.checkpoint, command.out, result["verdict"])
        result |= {"out": str(outputs[0].path), "correction_file": str(outputs[1].path)}
    if command.save_moments is not None or command.shows:
        moments = _moments(inputs.model, inputs.verified, command)
        result["spectra"] = spectra(moments, correction) if command.shows else {}
        if command.save_moments is not None:
            outputs.append(output_of_moments(moments, command.save_moments))
            result["moments_file"] = str(command.save_moments)
    result |= {"seconds": round(time.perf_counter() - start, 2), "memory_bytes": peak_memory()}
    outputs += _about(result, command)
    if outputs:
        write_together(outputs, force=command.force)
    return (3 if result["out"] is None else 0), result, _correct_text(correction, proof, inputs.trusted, result)


def _read(command: CorrectCommand) -> _Inputs:
    """Read and check all there is, before the long work begins."""
    checkpoint = open_checkpoint(command)
    checkpoint.refuse_corrected()
    _check_files(command, checkpoint)
    model = open_model(command.model, command.num_classes, checkpoint).to(device_wanted(command.device))
    preparation = prepare(model, command.model, command)
    data = open_data(str(command.verified or command.trusted), command, preparation)
    check_names(model, data, preparation)
    test_source = None if command.test is None else open_data(command.test, command, preparation)
    test = None if test_source is None else _read_test(model, test_source, command)
    trusted = None if command.trusted is None else _trust(model, data, command)
    verified = data if trusted is None else trusted.source
    return _Inputs(checkpoint, model, preparation, verified, trusted, test_source, test)


def _result(inputs: _Inputs, correction: Correction, proof: Proof | None, command: CorrectCommand) -> dict[str, Any]:
    """Return what was found, as plain data."""
    preparation, trusted = inputs.preparation, inputs.trusted
    result = {"schema": SCHEMA} | correction.as_dict() | {"changed": correction.changed, "out": None}
    result |= {"correction_file": None, "preprocessing": preparation.description}
    result |= _about_weights(inputs.model, correction, inputs.checkpoint)
    result |= {"verdict": None if proof is None else proof.verdict, "proof": _about_proof(proof)}
    if proof is not None and proof.kind == "test":
        result["test"] = _measured(proof)
    if trusted is not None:
        result["trusted"] = trusted.as_dict()
    if correction.caution:
        result["warning"] = correction.caution
    source = inputs.verified if inputs.test_source is None else inputs.test_source
    return result | {
        "class_names": None if preparation.class_names is None else list(preparation.class_names),
        "examples": examples(proof, source, preparation) if proof is not None and command.shows else [],
        "files": files_read(command),
        "command": spelled_command(command),
        "versions": versions(),
        "seed": command.seed,
    }


def _settings(inputs: _Inputs, command: CorrectCommand) -> dict[str, Any]:
    """Return the settings of the correction, which are those of its proof as well."""
    names = (field.name for field in fields(CorrectOptions) if field.name not in ("device", "suspects"))
    suspects = None if command.suspects is None else open_data(command.suspects, command, inputs.preparation)
    stored_as = inputs.checkpoint.dtypes(inputs.model)
    return {name: getattr(command, name) for name in names} | {"suspects": suspects, "stored_as": stored_as}


def _correct_and_prove(inputs: _Inputs, command: CorrectCommand) -> tuple[Correction, Proof | None]:
    """Correct, and measure the gain on samples that the correction has not seen, if there are any."""
    kind, seed, show = command.proves_by, command.seed, command.progress
    model, test, settings = inputs.model, inputs.test, _settings(inputs, command)
    if test is not None:
        correction = correct(model, inputs.verified, **settings)
        return correction, measured("test", model, correction, test, range(len(test)), seed=seed, show=show)
    if kind == "none":
        return correct(model, inputs.verified, **settings), None
    samples = read_samples(inputs.verified, command.batch_size, command.progress)
    check_provable(len(samples), kind, command)
    if kind == "split":
        _, proving = halves(samples, command.seed)
        correction = correct(model, without(samples, proving), **settings)
        return correction, measured("split", model, correction, samples, proving, seed=seed, show=show)
    start = time.perf_counter()
    correction = correct(model, samples.source, **settings)
    if not correction.changed:
        return correction, None
    expected = duration(estimated_seconds(correction, time.perf_counter() - start, command.folds))
    tell(
        f"proof: {OUTER_FOLDS} corrections, each judged on samples it has not seen, about {expected}", command.progress
    )
    return correction, prove(model, samples.source, **settings)


def _may_write(proof: Proof | None, command: CorrectCommand) -> bool:
    """Only what is proved is written, unless the user takes it as it is."""
    return command.force or (command.proves_by == "none" if proof is None else proof.verdict == "improved")


def _about_proof(proof: Proof | None) -> dict[str, Any]:
    return {"kind": "none", "samples": 0, "comparison": None} if proof is None else proof.as_dict()


def _measured(proof: Proof) -> dict[str, Any]:
    """Return the scores on test samples in short."""
    before, after = proof.comparison.before.accuracy, proof.comparison.after.accuracy
    return {"samples": len(proof.labels), "before": before, "after": after, "gain": after - before}


def _check_files(command: CorrectCommand, checkpoint: Checkpoint) -> None:
    """Refuse outputs that cannot be written, or that are inputs, before any work is done."""
    out = Path(command.out)
    further = (command.save_moments, command.result, command.report, command.card)
    others = [correction_path(out), *(Path(path) for path in further if path is not None)]
    inputs: list[str | Path | None] = [
        checkpoint.path,
        command.verified,
        command.trusted,
        command.test,
        command.moments,
        command.suspects,
    ]
    checkpoint.check_outputs(out, others, [path for path in inputs if path is not None], force=command.force)


def _about_weights(model: nn.Module, correction: Correction, checkpoint: Checkpoint) -> dict[str, Any]:
    """Say which weights of the checkpoint were used, and what its dtypes keep of the correction."""
    held = checkpoint.dtypes(model)
    dtypes = sorted({str(held[name]).removeprefix("torch.") for name in correction.corrected})
    return {
        "weights": checkpoint.kind(model),
        "weights_dtypes": dtypes,
        "unchanged_by_rounding": correction.unchanged_by_rounding,
        "notes": checkpoint.notes(model),
    }


def _read_test(model: nn.Module, source: Source, command: CorrectCommand) -> Samples:
    """Read the test samples, and try the model on two of them before the long work begins."""
    test = read_samples(source, 250, command.progress)
    device = device_of(model)
    with borrowed(model):
        logits = predict(model, test, range(min(2, len(test))), 2, device)
    check_labels(test.labels, logits.shape[1])
    return test


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
    )


def _moments(model: nn.Module, verified: Source, command: CorrectCommand) -> SavedMoments:
    return collect_moments(
        model,
        verified,
        include=command.include,
        exclude=command.exclude,
        batch_size=command.batch_size,
        padding=command.padding,
        progress=command.progress,
    )


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
        The correction file after the checkpoint, whose SHA-256 it holds.
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


def _about(result: dict[str, Any], command: CorrectCommand) -> list[Output]:
    """Return the files that tell what was found, as far as they were asked for."""
    wanted = ((command.result, as_json), (command.report, render), (command.card, model_card))
    return [Output(Path(path), partial(_fill_text, text=spell(result))) for path, spell in wanted if path is not None]


def _fill_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _correct_text(correction: Correction, proof: Proof | None, picked: Trusted | None, result: dict[str, Any]) -> str:
    trusted = [] if picked is None else [picked.summary()]
    lines = [*trusted, correction.summary(), *result["notes"], f"Samples are prepared so: {result['preprocessing']}."]
    half = [name for name in result["weights_dtypes"] if name in ("bfloat16", "float16")]
    if half:
        share = f"{result['unchanged_by_rounding']:.1%}"
        lines.append(f"Rounding to {' and '.join(half)} left {share} of the corrected layers' entries as they were.")
    if proof is not None:
        lines.append(proof.summary())
    if "moments_file" in result:
        lines.append(f"Wrote the moments to {result['moments_file']}.")
    files = f"Wrote {result['out']} and {result['correction_file']}."
    lines.append(f"{files if result['out'] else 'No change: no checkpoint was written.'} {result['seconds']:.0f} s.")
    return "\n".join(lines)
