"""Files of our own with one bit turned: refused, and never read as something else."""

from __future__ import annotations

import random

import pytest
import torch

import verifix
from tests.cases import small_data, small_net
from verifix import CheckpointError, Correction, SavedMoments, VerifixError
from verifix.storage.tensors import read_safetensors, write_safetensors

FLIPS = 300


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, model, (x, y) = tmp_path_factory.mktemp("own"), small_net().double().eval(), small_data(40)
    model(x.double())
    moments = verifix.collect_moments(model, (x.double(), y), progress=False)
    correction = verifix.correct(model, (x.double(), y), alpha=30.0, progress=False, check_labels=False)
    return {
        SavedMoments: moments.save(folder / "m.safetensors"),
        Correction: correction.save(folder / "c.safetensors"),
    }


def known(value) -> dict:
    """What a file says, tensors included, to compare by."""
    tensors, metadata = value.content()
    return {"metadata": metadata, **{name: tensor.numpy().tobytes() for name, tensor in tensors.items()}}


@pytest.mark.parametrize("kind", [SavedMoments, Correction])
def test_a_turned_bit_is_refused_or_changes_nothing(files, kind, tmp_path):
    content, whole = bytearray(files[kind].read_bytes()), known(kind.load(files[kind]))
    header = 8 + int.from_bytes(content[:8], "little")
    draw, refused = random.Random(0), 0
    for i in range(FLIPS):  # half of them in the header, which is a small part of the file
        bit = draw.randrange(8 * header) if i % 2 else draw.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path = tmp_path / "flipped.safetensors"
        path.write_bytes(content)
        try:
            found = known(kind.load(path))
        except VerifixError:
            refused += 1
        else:
            assert found == whole, bit
        content[bit // 8] ^= 1 << bit % 8
    assert refused >= 0.95 * FLIPS


FORGED = {
    "asymmetric": lambda tensors, about: tensors["0.gram"][0, 0, 1].add_(1.0),
    "of 2^62 rows": lambda tensors, about: about["layers"][0].update(n=2**62),
    "not positive semidefinite": lambda tensors, about: tensors["0.gram"].copy_(
        torch.eye(8, dtype=torch.float64) - 0.5
    ),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_moments_that_no_rows_have_are_refused_even_under_a_seal(files, change, tmp_path):
    import json

    from verifix.model.tensors import sealed

    tensors, metadata = read_safetensors(files[SavedMoments])
    about = json.loads(metadata["verifix"])
    del about["seal"]
    change(tensors, about)
    path = write_safetensors(tmp_path / "forged.safetensors", tensors, sealed(tensors, about))
    with pytest.raises(CheckpointError, match=r"is not a verifix moments file \(.*0.gram holds impossible moments"):
        SavedMoments.load(path)
