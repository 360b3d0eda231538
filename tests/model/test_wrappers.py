"""Models that come wrapped, compiled, reparametrised or adapted; and forms that are refused by name."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrizations

import verifix
from tests.cases import slow_projection, small_data, small_net
from verifix.errors import NoLayersError, UsageError

ALPHA = 30.0


def corrected(model: nn.Module, **options) -> verifix.Correction:
    return verifix.correct(model, small_data(), alpha=ALPHA, progress=False, **options)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A process group of one, over a file instead of a port."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "s"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


class CompiledInside(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = torch.compile(model, backend="eager")

    def forward(self, x):
        return self.inner(x)


def averaged(model: nn.Module) -> nn.Module:
    from torch.optim.swa_utils import AveragedModel

    return AveragedModel(model)


WRAPPERS = {
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "compiled in place": compiled_in_place,
    "data parallel": nn.DataParallel,
    "distributed": nn.parallel.DistributedDataParallel,
    "distributed, compiled": lambda m: torch.compile(nn.parallel.DistributedDataParallel(m), backend="eager"),
    "averaged": averaged,
}


def plain_of(wrapped: nn.Module) -> nn.Module:
    while not isinstance(wrapped, nn.Sequential):
        wrapped = wrapped._orig_mod if hasattr(wrapped, "_orig_mod") else wrapped.module
    return wrapped


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_model_is_corrected_as_the_module_inside(name, one_process):
    plain = small_net().eval()
    want = corrected(plain)
    wrapped = WRAPPERS[name](copy.deepcopy(plain)).eval()
    with torch.no_grad():
        if name != "distributed, compiled":  # whose tracing warns of functions it does not know
            wrapped(small_data()[0])  # compiled and ready, as a user has it
    found = corrected(wrapped)
    assert list(found.corrected) == list(want.corrected)
    assert all(torch.equal(found.corrected[k], want.corrected[k]) for k in want.corrected)
    assert type(found.model) is type(plain)
    found.apply_(wrapped)
    x = small_data()[0]
    torch.testing.assert_close(plain_of(wrapped)(x), found.model(x))
    assert verifix.inspect(wrapped, x).share == 1


def test_what_is_compiled_inside_runs_as_it_was_written():
    plain = small_net().eval()
    x, want = small_data()[0], corrected(plain).corrected
    wrapped = CompiledInside(copy.deepcopy(plain)).eval()
    wrapped(x)
    found = corrected(wrapped).corrected
    assert len(found) == 3
    for (name, new), old in zip(found.items(), want.values(), strict=True):
        assert name.startswith("inner._orig_mod.")
        assert torch.equal(new, old)
    before = torch._dynamo.utils.counters["frames"]["total"]
    wrapped(x)
    assert torch._dynamo.utils.counters["frames"]["total"] == before  # compiled as it was, not compiled anew


def normed(layer: nn.Module, old: bool, dim: int = 0) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older form is deprecated, and in many a trained model
        layer = (nn.utils.weight_norm if old else parametrizations.weight_norm)(layer, dim=dim)
    for parameter in layer.parameters():
        if parameter.numel() == layer.bias.numel() and parameter.ndim > 1:
            parameter.data.mul_(torch.linspace(0.5, 2, parameter.numel()).reshape(parameter.shape))
    return layer


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("dim", [0, 1])
def test_weight_norm_is_written_through(old, dim):
    model = nn.Sequential(normed(nn.Linear(8, 6), old, dim), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    x, y = small_data()
    x = x.double()
    model(x)
    fixed = verifix.correct(model, (x, y), alpha=ALPHA, progress=False)
    assert {r.parameter: r.status for r in fixed.layers} == dict.fromkeys(
        (name for name, p in model.named_parameters() if p.ndim > 1), "corrected"
    )
    first, after = model[0], fixed.model[0]
    fixed.model(x)
    want = slow_projection(first.weight.detach()[None], x[None], ALPHA)[0]
    torch.testing.assert_close(after.weight.detach(), want, rtol=1e-9, atol=1e-12)
    again = copy_of(model, first)
    fixed.apply_(again)
    torch.testing.assert_close(again(x), fixed.model(x))
    fixed.undo_(again)
    assert torch.equal(again(x), model(x))


def copy_of(model: nn.Module, first: nn.Module) -> nn.Module:
    from verifix.model.clone import copy_model

    return copy_model(model)


def test_a_row_of_zeros_under_weight_norm_stays_zero_and_finite():
    layer = parametrizations.weight_norm(nn.Linear(8, 6).double())
    direction, scale = layer.parametrizations.weight.original1, layer.parametrizations.weight.original0
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(6, 3).double()).eval()
    with torch.no_grad():
        scale[2] = 0
        direction[4] = torch.eye(8, dtype=torch.float64)[7]
    x, y = small_data()
    x = x.double()
    x[:, 7] = 0  # the verified samples never excite what row 4 looks at
    fixed = verifix.correct(model, (x, y), alpha=ALPHA, progress=False).model
    weight = fixed[0].weight.detach()
    assert torch.isfinite(weight).all()
    assert not weight[2].any()
    assert float(weight[4].norm()) < 1e-12
    assert torch.isfinite(fixed(x)).all()


def test_weight_norm_that_two_layers_share_and_a_half_precision_one():
    layer = parametrizations.weight_norm(nn.Linear(8, 8))
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(8, 3)).eval()
    fixed = corrected(model)
    x = small_data()[0]
    rows = torch.cat([x, model[:2](x)]).detach().double()
    want = slow_projection(layer.weight.detach().double()[None], rows[None], ALPHA)[0]
    torch.testing.assert_close(fixed.model[0].weight.detach().double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (parametrizations.spectral_norm, "the parametrization SpectralNorm computes the weight from it"),
        (nn.utils.spectral_norm, "spectral norm divides it by its largest singular value"),
        (parametrizations.orthogonal, "the parametrization Orthogonal computes the weight from it"),
    ],
)
def test_other_parametrizations_are_skipped_with_the_reason(wrap, words):
    model = nn.Sequential(wrap(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model(small_data()[0])
    before = model[0].weight.detach().clone()
    fixed = corrected(model)
    skipped = [r for r in fixed.layers if r.status == "skipped"]
    assert skipped
    assert all(words in r.reason for r in skipped)
    fixed.model(small_data()[0])
    torch.testing.assert_close(fixed.model[0].weight.detach(), before)
    share = verifix.inspect(model, small_data()[0]).share
    assert share == pytest.approx(24 / (24 + sum(model.get_parameter(r.parameter).numel() for r in skipped)))


def test_weight_standardisation_is_skipped_with_the_reason(vision):
    from timm.layers import StdConv2d

    model = nn.Sequential(StdConv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(3)).eval()
    model(torch.randn(2, 3, 8, 8))
    (standardised, _) = verifix.inspect(model, torch.randn(2, 3, 8, 8)).accounts
    assert (standardised.status, standardised.multiplies) == ("skipped", True)
    assert "weight standardisation" in standardised.reason


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu())


def adapted(**options) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(Net(), LoraConfig(target_modules=["first", "second"], r=4, lora_alpha=8, **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_a_low_rank_adapter_is_corrected_as_if_it_were_merged():
    model = adapted(lora_dropout=0.1)
    merged = copy.deepcopy(model).merge_and_unload().eval()
    x = small_data()[0]
    torch.testing.assert_close(model(x), merged(x))
    found, want = corrected(model), corrected(merged)
    torch.testing.assert_close(found.model(x), want.model(x), rtol=1e-5, atol=1e-5)
    skipped = {r.parameter: r.reason for r in found.layers if r.status == "skipped"}
    assert len(skipped) == 2
    assert all("lora_B" in name and "second factor" in reason for name, reason in skipped.items())
    after = found.model.merge_and_unload()
    torch.testing.assert_close(after.first.weight, want.model.first.weight, rtol=1e-4, atol=1e-5)


def test_adapters_that_cannot_be_kept_apart_are_refused_with_the_remedy(vision):
    from peft import IA3Config, LoHaConfig, get_peft_model

    already = adapted()
    already.merge_adapter()
    for model in (
        adapted(use_dora=True),
        already,
        get_peft_model(Net(), LoHaConfig(target_modules=["first"])),
        get_peft_model(Net(), IA3Config(target_modules=["first"], feedforward_modules=[])),
    ):
        with pytest.raises(UsageError, match="merge_and_unload"):
            corrected(model.eval(), check_labels=False)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(small_net().eval())


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(small_net().eval(), small_data()[0])


def quantised_dynamically() -> nn.Module:
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize_dynamic(small_net().eval(), {nn.Linear}, torch.qint8)


def in_integers() -> nn.Module:
    model = small_net().eval()
    model[0].weight = nn.Parameter((model[0].weight * 100).to(torch.int8), requires_grad=False)
    return model


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return small_net()


def sharded_by_tensor() -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    model, mesh = small_net().eval(), init_device_mesh("cpu", (1,))
    model[0].weight = nn.Parameter(distribute_tensor(model[0].weight.detach(), mesh))
    return model


def fully_sharded() -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(small_net().eval(), mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))


def fully_sharded_older() -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FullyShardedDataParallel(small_net().eval(), device_id=torch.device("cpu"))


REFUSED = {
    "scripted": (scripted, "TorchScript module.*give the Python module"),
    "traced": (traced, "TorchScript module.*give the Python module"),
    "quantised": (quantised_dynamically, "quantised module Linear at '0'.*quantise it again"),
    "integers": (in_integers, r"quantised weight '0.weight' \(torch.int8\)"),
    "exported": (lambda: torch.export.export(small_net().eval(), (small_data()[0],)), "ExportedProgram.*made from"),
    "exported module": (
        lambda: torch.export.export(small_net().eval(), (small_data()[0],)).module(),
        "exported program.*exported from",
    ),
    "meta": (on_meta, "on the meta device.*load the weights first"),
    "dtensor": (sharded_by_tensor, "sharded.*DTensor.*gather a full state dict"),
    "fsdp": (fully_sharded, "sharded.*gather a full state dict"),
    "older fsdp": (fully_sharded_older, "sharded.*gather a full state dict"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_forms_that_cannot_be_corrected_are_refused_by_name(name, one_process):
    build, message = REFUSED[name]
    model = build()
    surveys = [] if name == "meta" else [lambda m: verifix.inspect(m, small_data()[0])]  # which needs no values
    for call in (corrected, *surveys):
        with pytest.raises(UsageError, match=message) as caught:
            call(model)
        assert "\n" not in str(caught.value)


def test_a_model_ready_for_quantisation_and_a_traced_graph_are_no_obstacle():
    graph = torch.fx.symbolic_trace(small_net().eval())
    assert len(corrected(graph).corrected) == 3


def test_a_tied_head_survives_a_save_and_a_load(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.second.weight = self.first.weight
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.second(self.first(x).relu()))

    fixed = corrected(Tied().eval())
    assert fixed.model.first.weight is fixed.model.second.weight
    torch.save(fixed.model.state_dict(), tmp_path / "t.pt")
    again = Tied()
    again.load_state_dict(torch.load(tmp_path / "t.pt", weights_only=True))
    x = small_data()[0]
    assert torch.equal(again.eval()(x), fixed.model(x))
    with pytest.raises(NoLayersError, match="also used by embedding"):
        verifix.correct(EmbeddingTied().eval(), (torch.arange(60) % 5, torch.arange(60) % 5), alpha=9, progress=False)


class EmbeddingTied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)

    def forward(self, ids):
        return self.embedding(ids) @ self.embedding.weight.T
