"""`apply_` and `undo_` write all or nothing, and unusual tensors that nothing uses are no obstacle to a correction."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import verifix
from tests.cases import small_data, small_net
from verifix import CheckpointError, Correction, UsageError
from verifix.io.data.tables import read_table
from verifix.report.files import read_result
from verifix.storage.atomic import write_atomically

LAST = "5.weight"
"""The last weight that is written, so that a fault at it finds others written already."""


@pytest.fixture
def case():
    model, samples = small_net().eval(), small_data()
    with torch.no_grad():
        model[5].weight.copy_(model[5].weight[:1].expand_as(model[5].weight))  # so that it can be expanded
    correction = verifix.correct(model, samples, alpha=20, progress=False)
    assert list(correction.corrected)[-1] == LAST
    assert len(correction.corrected) == 3
    return model, correction


def content(model: nn.Module) -> dict[str, bytes]:
    return {name: x.detach().clone().numpy().tobytes() for name, x in model.named_parameters()}


def mapped(values: np.ndarray, folder: Path) -> torch.Tensor:
    """The values in a file that is mapped for reading: writing into it ends the process."""
    np.save(folder / "w.npy", values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(np.load(folder / "w.npy", mmap_mode="r"))


def expand(model: nn.Module, _: Path) -> None:
    model[5].weight = nn.Parameter(model[5].weight[:1].detach().clone().expand(model[5].weight.shape))


def protect(model: nn.Module, folder: Path) -> None:
    model[5].weight = nn.Parameter(mapped(model[5].weight.detach().numpy(), folder))


def share_in_part(model: nn.Module, _: Path) -> None:
    memory = torch.cat([model[5].weight.detach().flatten(), torch.zeros(3)])
    model[5].weight = nn.Parameter(memory[: model[5].weight.numel()].view_as(model[5].weight))
    model.register_parameter("other", nn.Parameter(memory[3:]))


def overlap(model: nn.Module, _: Path) -> None:
    """Rows that begin one number after another: their number in memory is less than that of the entries."""
    with torch.no_grad():
        model[5].weight.fill_(model[5].weight[0, 0])
    memory = model[5].weight.detach().flatten().clone()
    model[5].weight = nn.Parameter(memory.as_strided(model[5].weight.shape, (1, 1)))


def make_sparse(model: nn.Module, _: Path) -> None:
    model[5].weight = nn.Parameter(model[5].weight.detach().to_sparse())


def make_meta(model: nn.Module, _: Path) -> None:
    model[5].weight = nn.Parameter(model[5].weight.detach().to("meta"))


OBSTACLES = {
    "expanded": (expand, r"'5.weight' is expanded, several entries .* x.data = x.data.clone\(\)$"),
    "read-only": (protect, r"'5.weight' lies in memory that is read-only; .* x.data = x.data.clone\(\)$"),
    "shared in part": (share_in_part, "'5.weight' shares memory with 'other'; part them first$"),
    "overlapping": (overlap, "'5.weight' is expanded"),
    "sparse": (make_sparse, "'5.weight' is sparse, nested or quantised; give the model in its plain form$"),
    "meta": (make_meta, "'5.weight' is on the meta device and has no values; load the weights first$"),
}


@pytest.mark.parametrize("verb", ["apply_", "undo_"])
@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_written_is_found_before_the_first_weight(name, verb, case, tmp_path):
    model, correction = case
    change, text = OBSTACLES[name]
    if verb == "undo_":
        correction = turned_round(correction)
    change(model, tmp_path)
    if name == "overlapping":  # all of one value, which is what the correction has to expect
        correction = with_original(correction, model)
    first = {key: value for key, value in model.named_parameters() if key in ("0.weight", "3.weight")}
    before = {key: value.detach().clone() for key, value in first.items()}
    with pytest.raises(CheckpointError) as caught:
        getattr(correction, verb)(model)
    assert re.match(f"cannot {verb[:-1]}: {text}", str(caught.value))
    assert all(torch.equal(first[key], value) for key, value in before.items())


def turned_round(correction: Correction) -> Correction:
    """What undoes to the weights that the correction has made of the model's own."""
    made = Correction(correction.corrected, correction.original, {}, (), correction.provenance)
    assert list(made.original) == list(correction.original)
    return made


def with_original(correction: Correction, model: nn.Module) -> Correction:
    weights = {"original": dict(correction.original), "corrected": dict(correction.corrected)}
    side = "original" if torch.equal(weights["original"]["0.weight"], model[0].weight) else "corrected"
    weights[side][LAST] = model[5].weight.detach().clone().contiguous()
    return Correction(weights["original"], weights["corrected"], {}, (), correction.provenance)


def test_the_remedy_that_is_named_helps(case, tmp_path):
    model, correction = case
    for change in (expand, protect):
        change(model, tmp_path)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        correction.apply_(model)
        assert torch.equal(model[5].weight, correction.corrected[LAST])
        correction.undo_(model)


def test_a_tie_that_the_correction_does_not_know_is_found_and_all_restored():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.b.weight = nn.Parameter(self.a.weight.detach().clone())

        def forward(self, x):
            return self.head(self.b(self.a(x).relu()).relu())

    model = Two().eval()
    correction = verifix.correct(model, small_data(), alpha=20, progress=False)
    assert not torch.equal(correction.corrected["a.weight"], correction.corrected["b.weight"])
    model.b.weight = model.a.weight
    before = content(model)
    with pytest.raises(CheckpointError, match=r"'a.weight' shares memory with another weight that gets other values"):
        correction.apply_(model)
    assert content(model) == before


def test_an_interruption_leaves_no_half(case):
    model, correction = case

    class Interrupting(nn.Parameter):
        """A weight whose writing the user interrupts, once."""

        def __new__(cls, data):
            made = super().__new__(cls, data)
            made.left = 1
            return made

        @property
        def data(self):
            if self.left:
                self.left = 0
                raise KeyboardInterrupt
            return super().data

    before = content(model)
    weight = model[5].weight.detach().clone()
    del model[5]._parameters["weight"]
    model[5]._parameters["weight"] = Interrupting(weight)
    with pytest.raises(KeyboardInterrupt):
        correction.apply_(model)
    assert content(model) == before


def test_tensors_of_inference_mode_are_written(case):
    _, correction = case
    with torch.inference_mode():
        model = small_net().eval()
        for name, parameter in model.named_parameters():
            parameter.data.copy_(correction.original.get(name, parameter))
    assert model[5].weight.is_inference()
    correction.apply_(model)
    assert torch.equal(model[5].weight, correction.corrected[LAST])
    correction.undo_(model)
    assert torch.equal(model[5].weight, correction.original[LAST])


def test_numpy_memory_that_is_only_marked_read_only_is_still_memory_of_the_process(case):
    model, correction = case
    values = model[5].weight.detach().numpy().copy()
    values.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model[5].weight = nn.Parameter(torch.from_numpy(values))
    correction.apply_(model)
    assert torch.equal(model[5].weight, correction.corrected[LAST])


SEGFAULT = """
import sys, warnings; warnings.simplefilter("ignore")
import numpy as np, torch
x = torch.from_numpy(np.load(sys.argv[1], mmap_mode="r"))
print("before", flush=True); x.copy_(torch.ones(3)); print("after")
"""


def test_writing_into_a_file_that_is_mapped_for_reading_would_end_the_process(tmp_path):
    np.save(tmp_path / "w.npy", np.zeros(3, np.float32))
    argv = [sys.executable, "-c", SEGFAULT, str(tmp_path / "w.npy")]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (result.returncode < 0, result.stdout) == (True, "before\n")


# Parameters that nothing uses, of forms that cannot be trained.


class Carrying(nn.Module):
    """A network that carries a tensor which it does not use."""

    def __init__(self, extra: torch.Tensor, as_buffer: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)
        if as_buffer:
            self.register_buffer("extra", extra)
        else:
            self.extra = nn.Parameter(extra, requires_grad=False)

    def forward(self, x):
        return self.b(self.a(x).relu())


UNUSED = {
    "float8_e4m3fn": lambda: torch.ones(4, 4).to(torch.float8_e4m3fn),
    "float8_e5m2": lambda: torch.ones(4).to(torch.float8_e5m2),
    "float8_e8m0fnu": lambda: torch.ones(4, 4).to(torch.float8_e8m0fnu),
    "float8_e4m3fnuz": lambda: torch.ones(4, 4).to(torch.float8_e4m3fnuz),
    "sparse": lambda: torch.eye(4).to_sparse(),
    "sparse rows": lambda: torch.eye(4).to_sparse_csr(),
    "complex": lambda: torch.ones(4, 4, dtype=torch.complex64),
    "half": lambda: torch.ones(4, 4).half(),
    "empty": lambda: torch.empty(0, 4),
    "expanded": lambda: torch.ones(1, 4).expand(4, 4),
}
INPUTS = torch.randn(80, 6, generator=torch.Generator().manual_seed(1))
SAMPLES = INPUTS, (INPUTS[:, 0] > 0).long()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("as_buffer", [False, True], ids=["parameter", "buffer"])
@pytest.mark.parametrize("form", UNUSED)
def test_a_tensor_that_nothing_uses_changes_nothing(form, as_buffer):
    settings = {"recipe": "refit,finetune", "folds": 2, "progress": False, "check_labels": False}
    model = Carrying(UNUSED[form](), as_buffer).eval()
    correction = verifix.correct(model, SAMPLES, **settings)
    expected = verifix.correct(Carrying(torch.ones(1), as_buffer=True).eval(), SAMPLES, **settings)
    assert correction.strengths == expected.strengths != {"refit": None, "finetune": None}
    for name, value in expected.corrected.items():
        assert torch.equal(correction.corrected[name], value), name
    assert correction.corrected.keys() == expected.corrected.keys()
    correction.apply_(model)
    correction.undo_(model)


def test_a_nested_tensor_is_refused_by_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(UsageError, match="'extra' of the model is a nested tensor; keep its parts as parameters"):
        verifix.correct(Carrying(nested).eval(), SAMPLES, progress=False)


# JSON that is nested deeper than Python reads.

DEEP = "[" * 100_000 + "]" * 100_000


def test_deep_json_in_the_metadata_of_parquet_is_ignored(tmp_path):
    names = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}
    for text, expected in (
        (json.dumps(names), ("a", "b")),
        (DEEP, None),
        (f'{{"info": {DEEP}}}', None),
        ('{"info": {"features": []}}', None),
        ('{"info": {"features": {"label": {"_type": "ClassLabel", "names": 7}}}}', None),
    ):
        table = pa.table({"label": [0, 1]}).replace_schema_metadata({b"huggingface": text.encode()})
        pq.write_table(table, tmp_path / "t.parquet")
        read = read_table(tmp_path / "t.parquet")
        assert read.class_names.get("label") == expected
        assert list(read.column("label")) == [0, 1]


def test_deep_json_elsewhere_is_one_line_or_nothing(tmp_path):
    (tmp_path / "r.json").write_text(DEEP)
    with pytest.raises(UsageError, match=r"r.json cannot be read") as caught:
        read_result(tmp_path / "r.json")
    assert "\n" not in str(caught.value)
    folder = tmp_path / ".a.txt.abcdefgh.tmp"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / "plan.json").write_text(DEEP)
    write_atomically(tmp_path / "a.txt", lambda path: path.write_text("new"))
    assert (tmp_path / "a.txt").read_text() == "new"
    (tmp_path / "t.jsonl").write_text(f'{{"text": {DEEP}}}\n')
    with pytest.raises(verifix.DataError, match=r"line 1 of .*t.jsonl is not JSON"):
        read_table(tmp_path / "t.jsonl")
