"""Which value of a mask means padding is found out from the logits, not taken from its name alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import verifix
from verifix import DataError

N, T, D = 60, 9, 5
NAMES = ("padding_mask", "src_key_padding_mask", "tgt_key_padding_mask", "attention_mask")
FORMS = {"float": Tensor.double, "bool": Tensor.bool, "int": Tensor.long}


class Pooled(nn.Module):
    """Tokens through a layer, their mean through another; the mask says what counts, or what is hidden."""

    def __init__(self, *, ones_count: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ones_count = ones_count
        self.lift, self.head = nn.Linear(D, 8), nn.Linear(8, 3)
        self.double().eval()

    def pooled(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return self.head(self.lift(x).tanh().mean(1))
        kept = (mask.double() if self.ones_count else 1 - mask.double())[..., None]
        return self.head((self.lift(x).tanh() * kept).sum(1) / kept.sum(1))


class Unmasked(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(x, None)


def taking(name: str, *, ones_count: bool) -> Pooled:
    """Return a model whose mask has this name and meaning."""
    space: dict[str, object] = {}
    exec(f"def forward(self, x, {name}):\n    return self.pooled(x, {name})", space)
    return type("Masked", (Pooled,), {"forward": space["forward"]})(ones_count=ones_count)


def data(*, padded: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs whose padding is not zero, which of their tokens count, and labels."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(N, T, D, generator=draw, dtype=torch.float64)
    lengths = torch.randint(3, T, (N, 1), generator=draw) if padded else torch.full((N, 1), T)
    real = torch.arange(T) < lengths
    x[~real] = 5 * torch.randn(int((~real).sum()), D, generator=draw, dtype=torch.float64) + 3
    return x, real, torch.arange(N) % 3


def weights(model: nn.Module, verified: object, **settings: object) -> Tensor:
    fixed = verifix.correct(model, verified, alpha=100.0, progress=False, check_labels=False, **settings)
    return torch.cat([fixed.corrected[name].flatten() for name in ("lift.weight", "head.weight")])


def oracle(*, padded: bool = True) -> Tensor:
    """Return the weights from samples one by one, without any padding."""
    x, real, labels = data(padded=padded)
    alone = [(x[i, real[i]], labels[i]) for i in range(N)]
    return weights(Unmasked(), DataLoader(alone, batch_size=1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ones_count", [True, False], ids=["one counts", "one is hidden"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
def test_the_reading_under_which_hidden_tokens_do_not_matter_is_taken(name, ones_count, form, padded):
    x, real, labels = data(padded=padded)
    mask = FORMS[form](real if ones_count else ~real)
    model = taking(name, ones_count=ones_count)
    fixed = verifix.correct(
        model, ({"x": x, name: mask}, labels), alpha=100.0, progress=False, check_labels=False, batch_size=16
    )
    found = torch.cat([fixed.corrected[layer].flatten() for layer in ("lift.weight", "head.weight")])
    torch.testing.assert_close(found, oracle(padded=padded), rtol=1e-9, atol=1e-9)
    usual = (name == "attention_mask") == ones_count
    told = [note for note in fixed.notes if note.startswith(f"{name} is read the other way round")]
    additive = not padded and form == "float" and not ones_count  # nothing but zeros: nothing is hidden either way
    assert len(told) == (not usual and not additive)


def test_later_stages_and_the_proof_read_it_alike():
    x, real, labels = data()
    model = taking("padding_mask", ones_count=True)
    verified = {"x": x, "padding_mask": real.double()}, labels
    plain = taking("attention_mask", ones_count=True)
    same = {"x": x, "attention_mask": real.long()}, labels
    settings = {"recipe": "project,layerwise,refit", "progress": False, "check_labels": False, "folds": 3}
    turned, usual = verifix.correct(model, verified, **settings), verifix.correct(plain, same, **settings)
    assert turned.strengths == usual.strengths
    for name, value in usual.corrected.items():
        torch.testing.assert_close(turned.corrected[name], value)
    settings = {"alpha": 100.0, "progress": False, "check_labels": False, "check_inputs": False}
    proof = verifix.prove(model, verified, **settings, verified_from="unseen")
    torch.testing.assert_close(proof.after, verifix.prove(plain, same, **settings, verified_from="unseen").after)


def test_moments_are_of_the_same_rows():
    x, real, labels = data()
    turned = verifix.collect_moments(
        taking("padding_mask", ones_count=True), ({"x": x, "padding_mask": real.double()}, labels), progress=False
    )
    lift = next(layer for layer in turned.moments if layer.parameter == "lift.weight")
    rows = x[real]
    torch.testing.assert_close(turned.moments[lift].gram[0], rows.T @ rows)


class Visible(Pooled):
    """Puts the hidden tokens to use after all."""

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        return self.pooled(x, padding_mask) + x.sum((1, 2))[:, None] * torch.arange(3)


def test_a_mask_that_hides_nothing_under_either_reading_is_refused_unless_its_name_is_to_decide():
    x, real, labels = data()
    verified = {"x": x, "padding_mask": ~real}, labels
    with pytest.raises(DataError, match=r"whichever way 'padding_mask' is read.*--no-padding"):
        weights(Visible(ones_count=False), verified)
    torch.testing.assert_close(weights(Visible(ones_count=False), verified, padding=False), oracle())


def test_an_attention_mask_that_does_not_hide_everything_is_told():
    class Seen(Pooled):
        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.pooled(x, attention_mask) + x.sum((1, 2))[:, None] * torch.arange(3)

    x, real, labels = data()
    fixed = verifix.correct(
        Seen(), ({"x": x, "attention_mask": real.long()}, labels), alpha=100.0, progress=False, check_labels=False
    )
    assert any(note.startswith("The answers depend on what attention_mask hides") for note in fixed.notes)


@pytest.mark.parametrize("ones_count", [True, False], ids=["one counts", "one is hidden"])
def test_a_mask_handed_on_to_torch_means_what_torch_says(ones_count):
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.TransformerEncoderLayer(D + 1, 2, 8, dropout=0.0, batch_first=True)
            self.head = nn.Linear(D + 1, 3)
            self.double().eval()

        def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
            real = padding_mask if ones_count else ~padding_mask
            x = self.body(nn.functional.pad(x, (0, 1)), src_key_padding_mask=~real)
            return self.head((x * real[..., None]).sum(1) / real.sum(1, keepdim=True))

    x, real, labels = data()
    model = Encoder()
    fixed = verifix.correct(
        model,
        ({"x": x, "padding_mask": real if ones_count else ~real}, labels),
        alpha=100.0,
        progress=False,
        check_labels=False,
        batch_size=16,
    )
    assert {row.parameter: row.rows for row in fixed.layers}["body.linear1.weight"] == int(real.sum())
