"""Models that share, write, compute or hide their weights in ways of their own."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import verifix
from tests.cases import small_data, small_net
from verifix.errors import DataError, UsageError
from verifix.model.clone import copy_model

ALPHA = 30.0


def corrected(model: nn.Module, verified=None, **options) -> verifix.Correction:
    options = {"alpha": ALPHA, "check_labels": False, "progress": False} | options  # these models have learned nothing
    return verifix.correct(model, verified or small_data(), **options)


def reports(model: nn.Module, verified=None, **options) -> dict[str, tuple[str, str]]:
    return {r.parameter: (r.status, r.reason) for r in corrected(model, verified, **options).layers}


class Odd(nn.Module):
    """A weight used in an odd way, then a head."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape) / 3)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(x))


class AsComplex(Odd):
    def use(self, x):
        return torch.einsum("bi,io->bo", torch.complex(x, -x), torch.view_as_complex(self.w)).real


class FromABasis(Odd):
    def __init__(self) -> None:
        super().__init__(8, 8)
        self.register_buffer("basis", torch.randn(8, 8))

    def use(self, x):
        return F.linear(x, self.basis @ self.w)


class WritesAColumn(Odd):
    def use(self, x):
        with torch.no_grad():
            self.w[:, 0] = 0
        return F.linear(x, self.w)


class WritesData(Odd):
    def __init__(self) -> None:
        super().__init__(8, 8)
        self.register_buffer("kept", torch.randn(8, 8))

    def use(self, x):
        self.w.data = self.kept
        return F.linear(x, self.w)


class PutsItIn(Odd):
    def use(self, x):
        x = x[:, None].repeat(1, 2, 1)
        x[:, :1] = self.w
        return x.sum(1)


class Mapped(Odd):
    def use(self, x):
        return torch.vmap(lambda row: F.linear(row, self.w))(x)


class InSparse(Odd):
    def use(self, x):
        return x.to_sparse() @ self.w


SKIPPED = {
    "complex": (lambda: AsComplex(8, 8, 2), "used by einsum"),
    "basis": (FromABasis, "used by "),
    "column": (lambda: WritesAColumn(8, 8), "also used by Tensor.__setitem__"),
    "data": (WritesData, "used by "),
    "put in": (lambda: PutsItIn(1, 8), "used by Tensor.__setitem__"),
    "vmap": (lambda: Mapped(8, 8), "rows of linear cannot be read"),
    "sparse": (lambda: InSparse(8, 8), "rows of matmul cannot be read"),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_a_weight_used_in_an_odd_way_is_skipped_and_the_model_runs(name):
    build, reason = SKIPPED[name]
    torch.manual_seed(0)
    found = reports(build().eval())
    assert found["w"][0] == "skipped"
    assert reason in found["w"][1], found["w"]
    assert found["head.weight"] == ("corrected", "")


class ViewKept(nn.Module):
    """A view of a parameter as an attribute, beside the parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 8))
        self.part = self.w[:8]
        self.head = nn.Linear(24, 3)

    def forward(self, x):
        return self.head(torch.cat([F.linear(x, self.w), F.linear(x, self.part)], 1))


class PartShared(nn.Module):
    """Two parameters, one in a part of the other's memory."""

    def __init__(self, how) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(16, 3)
        self.b.weight = nn.Parameter(how(self.a.weight.data))

    def forward(self, x):
        return self.head(torch.cat([self.a(x), F.pad(self.b(x), (0, 8 - len(self.b.weight)))], 1))


@pytest.mark.parametrize("build", [ViewKept, lambda: PartShared(lambda w: w[:4]), lambda: PartShared(lambda w: w.T)])
def test_memory_shared_in_part_is_shared_in_the_copy(build):
    model = build().eval()
    x, _ = small_data()
    fixed = corrected(model)
    again = copy_model(model)
    torch.testing.assert_close(again(x), model(x))
    fixed.apply_(again)
    torch.testing.assert_close(again(x), fixed.model(x))
    if isinstance(model, PartShared):
        found = {r.parameter: (r.status, r.reason) for r in fixed.layers}
        assert found["a.weight"][0] == "skipped"
        assert found["a.weight"][1] in ("shares memory with 'b.weight'", "used through overlapping views")
        if len(model.b.weight) == 4:
            assert found["b.weight"] == ("skipped", "shares memory with 'a.weight'")
    else:
        plain = ViewKept().eval()
        plain.load_state_dict(fixed.model.state_dict())  # in place, so that its own view follows
        torch.testing.assert_close(fixed.model(x), plain(x))


def test_infinite_buffers_are_no_obstacle_but_nan_is():
    class Causal(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((5, 5), value).triu(1))
            self.l = nn.Linear(8, 3)

        def forward(self, x):
            return self.l(x)

    assert corrected(Causal(float("-inf")).eval()).corrected
    with pytest.raises(DataError, match="'mask' of the model contains NaN"):
        corrected(Causal(float("nan")).eval())


def test_a_scripted_part_and_a_sparse_buffer_are_given_back():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval())

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.head = part, nn.Linear(8, 3)
            self.register_buffer("adjacency", torch.eye(8).to_sparse())

        def forward(self, x):
            return self.head(torch.sparse.mm(self.adjacency, self.part(x).T).T)

    found = reports(Graph().eval())
    assert found["head.weight"] == ("corrected", "")


def test_weight_norm_of_a_recurrent_layer_is_copied_after_a_run_with_gradients():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.utils.parametrizations.weight_norm(nn.LSTM(4, 6, batch_first=True), "weight_hh_l0")
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.rnn(x.view(len(x), 2, 4))[0][:, -1])

    model = Reads().eval()
    x, _ = small_data()
    model(x).sum().backward()
    fixed = corrected(model)
    torch.testing.assert_close(corrected(copy_model(model)).model(x), fixed.model(x))


def test_moments_of_weight_normed_layers_are_saved_and_loaded(tmp_path):
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 3)).eval()
    x, y = small_data()
    path = verifix.collect_moments(model, (x[:40], y[:40]), progress=False).save(tmp_path / "m.safetensors")
    found = corrected(model, (x[40:], y[40:]), moments=path).corrected
    for name, value in corrected(model, (x, y)).corrected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_inputs_are_not_written_to_by_a_model_that_writes_to_what_it_is_given():
    class Normalises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(8, 3)

        def forward(self, x):
            return self.l(x.sub_(1.0).div_(2.0))

    x, y = small_data()
    before = x.clone()
    model = Normalises().eval()
    loader = DataLoader(
        list(zip(x, y, strict=True)), batch_size=1, collate_fn=lambda rows: (rows[0][0][None], rows[0][1][None])
    )
    want = corrected(model, (x.clone(), y)).corrected["l.weight"]
    torch.testing.assert_close(corrected(model, loader).corrected["l.weight"], want, rtol=1e-5, atol=1e-6)
    verifix.inspect(model, x)
    assert torch.equal(x, before)


def test_a_model_that_takes_any_keyword_gets_all_tensors():
    class TakesAny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(8, 3)
            self.seen: list[str] = []

        def forward(self, x, **more):
            return self.l(x + more["shift"])

    x, y = small_data()
    found = corrected(TakesAny().eval(), ({"x": x, "shift": torch.ones(len(x), 1)}, y))
    assert found.corrected


class WithTable(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.l, self.head, self.make = nn.Linear(8, 8), nn.Linear(8, 3), make
        self.table = nn.Parameter(torch.randn(4, 8))
        self.register_buffer("fixed", torch.randn(4, 8))

    def forward(self, x):
        return self.head(self.l(x) + self.l(self.make(self)).mean(0))


@pytest.mark.parametrize(
    "make",
    [lambda m: m.table, lambda m: m.table + 0, lambda m: m.fixed, lambda m: F.layer_norm(m.table[None], (8,))[0]],
)
def test_rows_of_no_sample_count_once_for_each_whatever_the_batch(make):
    torch.manual_seed(0)
    model = WithTable(make).double().eval()
    x, y = small_data()
    x = x.double()
    found = [corrected(model, (x, y), batch_size=size).corrected["l.weight"] for size in (1, 4, 16, 80)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-12)


def test_what_is_filled_with_samples_is_no_constant():
    class Fills(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(8, 3)

        def forward(self, x):
            total = torch.zeros(8, dtype=x.dtype)
            total += x.sum(0)
            return self.l(x) + self.l(total)

    x, y = small_data()
    x = x.double()
    (moments,) = verifix.collect_moments(
        Fills().double().eval(), (x, y), batch_size=80, progress=False
    ).moments.values()
    torch.testing.assert_close(moments.gram[0], x.T @ x + torch.outer(x.sum(0), x.sum(0)))


def test_deberta_does_not_depend_on_the_size_of_batches(vision):
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=60,
        num_labels=3,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        max_relative_positions=8,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = DebertaV2ForSequenceClassification(config).double().eval()
        inputs = torch.randint(1, 60, (24, 7))
        verified = {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}, torch.arange(24) % 3
        found = [corrected(model, verified, batch_size=size).corrected for size in (3, 24)]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-7, atol=1e-9)


def test_corrections_that_overlap_in_time_leave_the_process_as_it_was():
    started, go = threading.Event(), threading.Event()

    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(8, 3)

        def forward(self, x):
            torch.rand(1)
            started.set()
            go.wait(20)
            return self.l(x)

    compiled = torch.compile(small_net().eval(), backend="eager")
    compiled(small_data()[0])
    waits, other = Waits().eval(), small_net().eval()
    state = torch.get_rng_state()
    first = threading.Thread(target=lambda: corrected(waits))
    first.start()
    assert started.wait(20)
    second = threading.Thread(target=lambda: corrected(other))
    second.start()
    second.join(30)
    assert not torch.backends.mha.get_fastpath_enabled()  # the first still needs it so
    assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    go.set()
    first.join(30)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_ids_of_several_inputs_and_of_models_inside_are_searched_for_padding():
    class Config:
        pad_token_id = 0

    class Inside(nn.Module):
        config = Config()

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.l = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, ids):
            return self.l(self.embedding(ids)).sum(1)

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inside()

        def forward(self, users, text):
            return self.inner(users) + self.inner(text)

    users, text = torch.randint(1, 9, (60, 2)), torch.randint(1, 9, (60, 5))
    text[::3, 3:] = 0
    with pytest.raises(DataError, match="contain the model's pad id 0"):
        corrected(Wrapper().eval(), ((users, text), torch.arange(60) % 3))


def test_a_list_of_two_samples_is_refused_clearly():
    with pytest.raises(UsageError, match="may mean two samples, or inputs and labels"):
        corrected(small_net().eval(), [(torch.randn(8), 0), (torch.randn(8), 1)])
