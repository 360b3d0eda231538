"""Models that do with their tokens what they like: the mask finds them, or the model is refused; never in between."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import verifix
from verifix.errors import DataError

ALPHA, D, T, N = 40.0, 6, 7, 48


class Base(nn.Module):
    """Tokens as vectors; a subclass does something with them before they are pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(D, D), nn.Linear(D, 3)
        self.build()

    def build(self) -> None: ...

    def tokens(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.a(x)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask
        out = self.tokens(x, mask)
        return self.head((out * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class TokensFirst(Base):
    def tokens(self, x, mask):
        return self.a(x.transpose(0, 1)).transpose(0, 1)


class Flattened(Base):
    def tokens(self, x, mask):
        return self.a(x.reshape(-1, D)).view_as(x)


class FlattenedTokensFirst(Base):
    def tokens(self, x, mask):
        y = self.a(x.transpose(0, 1).reshape(-1, D))
        return y.view(x.shape[1], x.shape[0], D).transpose(0, 1)


class BareProducts(Base):
    def build(self):
        self.w, self.v = nn.Parameter(torch.randn(D, D) / 2), nn.Parameter(torch.randn(D, D) / 2)
        self.u, self.b = nn.Parameter(torch.randn(D, D) / 2), nn.Parameter(torch.randn(D))

    def tokens(self, x, mask):
        x = torch.addmm(self.b, x.reshape(-1, D), self.u).view_as(x) @ self.w
        return torch.einsum("tbd,de->bte", x.transpose(0, 1), self.v)


class Unpadded(Base):
    def tokens(self, x, mask):
        out = torch.zeros_like(x)
        out[mask.bool()] = self.a(x[mask.bool()])
        return out


class StepByStep(Base):
    def tokens(self, x, mask):
        return torch.stack([self.a(step) for step in x.unbind(1)], 1)


class Cell(Base):
    def build(self):
        self.cell = nn.GRUCell(D, D)

    def tokens(self, x, mask):
        state, out = x.new_zeros(len(x), D), []
        for t in range(x.shape[1]):
            state = torch.where(mask[:, t, None].bool(), self.cell(x[:, t], state), state)
            out.append(state)
        return torch.stack(out, 1)


class PerPosition(Base):
    def build(self):
        self.w = nn.Parameter(torch.randn(T + 2, D, D) / 2)

    def tokens(self, x, mask):
        return torch.einsum("btd,tdo->bto", x, self.w[: x.shape[1]])


class Doubled(Base):
    def tokens(self, x, mask):
        first, second = self.a(torch.cat([x, 2 * x])).chunk(2)
        return first + second


class HeadsFolded(Base):
    def build(self):
        self.b = nn.Linear(D // 2, D // 2)

    def tokens(self, x, mask):
        return torch.cat(self.b(torch.cat(x.split(D // 2, dim=2))).chunk(2), dim=2)


class Sorted(Base):
    def tokens(self, x, mask):
        order = torch.arange(x.shape[1] - 1, -1, -1)
        return self.a(x[:, order])[:, order]


class PictureOfTokens(Base):
    def build(self):
        self.conv = nn.Conv2d(1, D, (1, D))

    def tokens(self, x, mask):
        return self.conv(x[:, None]).squeeze(3).transpose(1, 2)


class CausalConvolution(Base):
    def build(self):
        self.conv = nn.Conv1d(D, D, 3)

    def tokens(self, x, mask):
        return self.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)


class OwnMaskName(Base):
    """Attention under a mask that the model calls something else, with as many samples as tokens at times."""

    def build(self):
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)

    def forward(self, x, real):
        out = self.attention(x, x, x, key_padding_mask=real == 0)[0]
        return self.head((out * real[..., None]).sum(1))


class DistinctQueries(OwnMaskName):
    def forward(self, x, real):
        out = self.attention(x + 1, x + 1, x, key_padding_mask=real == 0)[0]
        return self.head((out * real[..., None]).sum(1))


class Table(Base):
    """A table that no sample has a part in goes through the same layer."""

    def build(self):
        self.table, self.norm = nn.Parameter(torch.randn(5, D)), nn.LayerNorm(D)

    def tokens(self, x, mask):
        return self.a(x) + self.a(self.norm(self.table)).mean(0)


class TableWithOneSample(Table):
    def tokens(self, x, mask):
        return self.a(x) + self.a(self.norm(self.table)[None]).mean(1, keepdim=True)


class TableOfABuffer(Table):
    def build(self):
        self.register_buffer("table", torch.randn(5, D))
        self.norm = nn.Identity()


class TableForEverySample(Table):
    def tokens(self, x, mask):
        return self.a(x) + self.a(self.norm(self.table).expand(len(x), -1, -1)).mean(1, keepdim=True)


class Forwarded(Base):
    """The mask goes from the model to modules inside, which hand it on."""

    def build(self):
        self.first, self.second = Inner(), Inner()

    def tokens(self, x, mask):
        return self.a(self.second(self.first(x, attention_mask=mask), attention_mask=mask))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(D, D)

    def forward(self, x, attention_mask=None):
        return self.l(x)


class LateMask(Base):
    """A layer before the module that gets the mask; features, so that no pad id tells."""

    def build(self):
        self.inner = Inner()

    def forward(self, x, real):
        out = self.inner(self.a(x), attention_mask=real)
        return self.head((out * real[..., None]).sum(1))


FOUND = [
    TokensFirst,
    Flattened,
    BareProducts,
    Unpadded,
    PictureOfTokens,
    CausalConvolution,
    OwnMaskName,
    DistinctQueries,
    Table,
    TableWithOneSample,
    TableOfABuffer,
    TableForEverySample,
    Forwarded,
]
REFUSED = {
    FlattenedTokensFirst: "layer 'a.weight' counts rows of padding",
    StepByStep: "layer 'a.weight' counts rows of padding",
    Cell: "layer 'cell.weight_ih': a cell is called step by step",
    PerPosition: "layer 'w' counts rows of padding",
    Doubled: "layer 'a.weight': an input with the leading axes",
    HeadsFolded: "layer 'b.weight': an input with the leading axes",
    LateMask: r"layer 'a.weight' counts rows of padding",
}
ODD = {Sorted}  # what is reversed cannot be told from what is not, unless its padding is tried


def data(n: int = N, fill: float = 0.0) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(3, T + 1, (n,), generator=generator)
    lengths[: n // 2 : 5] = T
    parts = [torch.randn(int(k), D, generator=generator, dtype=torch.float64) for k in lengths]
    x = torch.full((n, T, D), fill, dtype=torch.float64)
    for row, part in zip(x, parts, strict=True):
        row[: len(part)] = part
    return x, (torch.arange(T) < lengths[:, None]).long(), torch.arange(n) % 3, parts


def build(kind: type[nn.Module]) -> tuple[nn.Module, str]:
    torch.manual_seed(4)
    return kind().double().eval(), "real" if issubclass(kind, (OwnMaskName, LateMask)) else "attention_mask"


def corrected(model: nn.Module, verified, **options) -> Tensor:
    found = verifix.correct(model, verified, alpha=ALPHA, progress=False, **options)
    return torch.cat([x.flatten() for x in found.corrected.values()])


def one_by_one(model: nn.Module, name: str) -> Tensor:
    *_, labels, parts = data()
    rows = [
        {"x": part, name: torch.ones(len(part), dtype=torch.long), "labels": y}
        for part, y in zip(parts, labels, strict=True)
    ]
    return corrected(model, DataLoader(rows))


@pytest.mark.parametrize("size", [5, T, 48])
@pytest.mark.parametrize("kind", FOUND, ids=lambda k: k.__name__)
def test_a_mask_is_found_in_any_layout_and_the_size_of_batches_does_not_matter(kind, size):
    model, name = build(kind)
    x, mask, labels, _ = data()
    found = corrected(model, ({"x": x, name: mask}, labels), batch_size=size)
    want = one_by_one(model, name)
    assert float((found - want).norm() / want.norm()) < 1e-9


@pytest.mark.parametrize("kind", REFUSED, ids=lambda k: k.__name__)
def test_a_layout_that_cannot_be_followed_is_refused_by_the_name_of_the_layer(kind):
    model, name = build(kind)
    x, mask, labels, _ = data()
    verified = {"x": x, name: mask}, labels
    with pytest.raises(DataError, match=REFUSED[kind]) as caught:
        corrected(model, verified, batch_size=5)
    assert "give samples without padding" in str(caught.value)
    with pytest.raises(DataError, match=REFUSED[kind]):
        verifix.collect_moments(model, verified, batch_size=5, progress=False)
    assert one_by_one(model, name).numel()  # the remedy works
    layer = REFUSED[kind].split("'")[1]
    others = [layer, layer.replace("_ih", "_hh")] if "_ih" in layer else [layer]
    assert corrected(model, verified, batch_size=5, exclude=others).numel()  # and so does the other


@pytest.mark.parametrize("kind", ODD, ids=lambda k: k.__name__)
def test_rows_of_padding_are_noticed_by_what_stands_in_them(kind):
    model, _ = build(kind)
    x, mask, labels, _ = data()
    with pytest.raises(DataError, match=r"layer 'a.weight' counts rows of padding"):
        corrected(model, ({"x": x, "attention_mask": mask}, labels), batch_size=5)


def test_a_model_that_sees_its_own_padding_is_not_blamed():
    class Sees(Base):
        def forward(self, x, attention_mask):
            return self.head(self.a(x).mean(1))

    model, _ = build(Sees)
    x, mask, labels, _ = data()
    assert corrected(model, ({"x": x, "attention_mask": mask}, labels)).numel()


FORMS = {
    "bool": lambda m: m.bool(),
    "float": lambda m: m.double(),
    "additive": lambda m: (1 - m.double()) * -1e4,
    "broadcast": lambda m: m[:, None, None],
    "broadcast, additive": lambda m: ((1 - m.double()) * torch.finfo(torch.float64).min)[:, None, None],
}


class Tolerant(Base):
    """Reads a mask in any form, as models of transformers do inside."""

    def forward(self, x, attention_mask):
        mask = attention_mask.reshape(len(x), -1)
        real = (mask > -1 if mask.max() <= 0 else mask > 0).double()
        return self.head((self.a(x) * real[..., None]).sum(1) / real.sum(1, keepdim=True))


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_is_read_in_any_form(form):
    model, _ = build(Tolerant)
    x, mask, labels, _ = data()
    found = corrected(model, ({"x": x, "attention_mask": FORMS[form](mask)}, labels))
    want = corrected(model, ({"x": x, "attention_mask": mask}, labels))
    assert torch.equal(found, want)


def test_a_mask_of_another_kind_is_refused():
    class Blind(Base):
        def forward(self, x, attention_mask):
            return self.head(self.a(x).mean(1))

    model, _ = build(Blind)
    x, mask, labels, _ = data()
    for odd in (mask * 7, mask[:, :, None, None] * torch.ones(1, 1, 3, 2, dtype=torch.long)):
        with pytest.raises(DataError, match=r"attention_mask has shape .* is not a token mask"):
            corrected(model, ({"x": x, "attention_mask": odd}, labels), padding=True)


class Choices(nn.Module):
    """Several texts per sample, as models of multiple choice have them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.a, self.head = nn.Embedding(20, D, padding_idx=0), nn.Linear(D, D), nn.Linear(D, 1)

    def forward(self, input_ids, attention_mask=None):
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        choices, ids, mask = input_ids.shape[1], input_ids.flatten(0, 1), attention_mask.flatten(0, 1)
        x = self.a(self.embedding(ids)) * mask[..., None]
        return self.head(x.sum(1)).view(-1, choices)


def test_texts_of_several_parts_are_masked_and_pad_ids_in_them_noticed():
    model = Choices().double().eval()
    labels, results = torch.arange(N) % 3, []
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 6, (N, 3), generator=generator)
    words = torch.randint(1, 20, (N, 3, 30), generator=generator)
    for longest in (6, 30):
        mask = (torch.arange(longest) < lengths[..., None]).long()
        ids = words[..., :longest] * mask
        results.append(corrected(model, ({"input_ids": ids, "attention_mask": mask}, labels), batch_size=10))
        with pytest.raises(DataError, match="contain the model's pad id 0"):
            corrected(model, (ids, labels))
    assert float((results[0] - results[1]).norm() / results[0].norm()) < 1e-9


class Towers(nn.Module):
    """Two sets of tokens of one size with masks of their own, and a layer behind both."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.after, self.head = Inner(), Inner(), nn.Linear(D, D), nn.Linear(2 * D, 3)

    def forward(self, x, y, of_x, of_y):
        a = self.left(x, attention_mask=of_x) * of_x[..., None]
        b = self.after(self.right(y, attention_mask=of_y)) * of_y[..., None]
        return self.head(torch.cat([a.sum(1), b.sum(1)], 1))


def test_two_masks_of_one_size_are_not_confused():
    torch.manual_seed(0)
    model = Towers().double().eval()
    x, mask, labels, _ = data()
    inputs = {"x": x, "y": x.flip(0) + 1, "of_x": mask, "of_y": mask.flip(0)}
    with pytest.raises(DataError, match=r"layer 'after.weight': two masks of 7 tokens differ"):
        corrected(model, (inputs, labels), batch_size=11)
    assert corrected(model, (inputs, labels), batch_size=11, exclude=["after.*"]).numel()


def test_a_decoder_without_a_mask_of_its_own_is_not_masked_by_the_encoders():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Transformer(D, 2, 1, 1, 8, dropout=0.0, batch_first=True)
            self.head = nn.Linear(D, 3)

        def forward(self, src, tgt, src_key_padding_mask):
            out = self.net(
                src,
                tgt,
                src_key_padding_mask=src_key_padding_mask,
                memory_key_padding_mask=src_key_padding_mask,
            )
            return self.head(out.mean(1))

    torch.manual_seed(0)
    model = Both().double().eval()
    x, mask, labels, _ = data()
    results = []
    for fill in (0.0, 3.0):
        y, _, _, _ = data(fill=fill)
        inputs = {"src": y, "tgt": x.flip(0) + 1, "src_key_padding_mask": mask == 0}
        fixed = verifix.correct(model, (inputs, labels), alpha=ALPHA, batch_size=10, progress=False)
        rows = {r.parameter: r.rows for r in fixed.layers}
        assert rows["net.decoder.layers.0.self_attn.out_proj.weight"] == N * T
        assert rows["net.encoder.layers.0.self_attn.out_proj.weight"] == int(mask.sum())
        results.append(torch.cat([v.flatten() for v in fixed.corrected.values()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


def test_tokens_of_a_decoder_need_a_mask_beside_a_padded_encoder(vision):
    from tests.capture.test_families import FAMILIES

    model = FAMILIES["transformers t5"][0]().eval()
    ids = torch.randint(5, 60, (N, T))
    ids[:, -1] = 1
    mask = torch.ones_like(ids)
    mask[::2, 4:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids}
    with pytest.raises(DataError, match="decoder_input_ids but no decoder_attention_mask"):
        corrected(model, (inputs, torch.arange(N) % 3))


def test_another_call_of_the_model_is_another_batch():
    model, _ = build(Base)
    x, mask, labels, _ = data()

    def twice(module: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        whole = torch.ones_like(inputs["attention_mask"])
        return module(**inputs) + module(inputs["x"] + 1, whole)

    verified = {"x": x, "attention_mask": mask}, labels
    fixed = verifix.correct(model, verified, alpha=ALPHA, forward=twice, progress=False, padding=False, include=["a.*"])
    assert {r.parameter: r.rows for r in fixed.layers}["a.weight"] == int(mask.sum()) + mask.numel()


def test_padded_sound_through_a_convolution_with_zeros_around_counts_as_alone():
    class Sound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv1d(1, D, 3, stride=2, padding=1), nn.Linear(D, 3)

        def forward(self, x, attention_mask):
            out = self.conv(x[:, None]).transpose(1, 2)
            lengths = (attention_mask.sum(1) - 1) // 2 + 1
            return self.head((out * (torch.arange(out.shape[1]) < lengths[:, None])[..., None]).sum(1))

    torch.manual_seed(0)
    model = Sound().double().eval()
    lengths = torch.arange(N) % 13 + 30
    sounds = [torch.randn(int(k), dtype=torch.float64) for k in lengths]
    labels = torch.arange(N) % 3
    x = nn.utils.rnn.pad_sequence(sounds, batch_first=True)
    mask = (torch.arange(x.shape[1]) < lengths[:, None]).long()
    rows = [
        {"x": s, "attention_mask": torch.ones(len(s), dtype=torch.long), "labels": y}
        for s, y in zip(sounds, labels, strict=True)
    ]
    want = corrected(model, DataLoader(rows))
    found = corrected(model, ({"x": x, "attention_mask": mask}, labels), batch_size=9)
    assert float((found - want).norm() / want.norm()) < 1e-9


def test_what_a_convolution_has_taught_a_mask_is_known_to_the_module_that_gets_it_next():
    class Thinned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.inner, self.head = nn.Conv1d(1, D, 3, stride=2), Inner(), nn.Linear(D, 3)

        def forward(self, x, attention_mask):
            out = self.inner(self.conv(x[:, None]).transpose(1, 2), attention_mask=attention_mask)
            lengths = (attention_mask.sum(1) - 3) // 2 + 1
            return self.head((out * (torch.arange(out.shape[1]) < lengths[:, None])[..., None]).sum(1))

    lengths = torch.arange(N) % 13 + 30
    mask = (torch.arange(42) < lengths[:, None]).long()
    inputs = {"x": torch.randn(N, 42, dtype=torch.float64) * mask, "attention_mask": mask}
    fixed = verifix.correct(
        Thinned().double().eval(), (inputs, torch.arange(N) % 3), alpha=ALPHA, batch_size=9, progress=False
    )
    assert {r.parameter: r.rows for r in fixed.layers}["inner.l.weight"] == int(((lengths - 3) // 2 + 1).sum())


def test_a_padded_wav2vec2_is_followed_through_its_convolutions(vision):
    from tests.capture.test_families import FAMILIES

    model = FAMILIES["transformers wav2vec2"][0]().double().eval()
    lengths = torch.arange(N) % 11 + 100
    values = torch.randn(N, 110, dtype=torch.float64)
    mask = (torch.arange(110) < lengths[:, None]).long()
    inputs = {"input_values": values * mask, "attention_mask": mask}
    fixed = verifix.correct(
        model, (inputs, torch.arange(N) % 3), alpha=ALPHA, batch_size=10, exclude=["*pos_conv*"], progress=False
    )
    frames = ((lengths - 4) // 3 + 1 - 3) // 2 + 1
    assert {r.parameter: r.rows for r in fixed.layers}["projector.weight"] == int(frames.sum())


def test_inspect_needs_no_mask_to_be_followed():
    x, mask, _, _ = data()
    for kind in REFUSED:
        model, name = build(kind)
        assert verifix.inspect(model, {"x": x[:T], name: mask[:T]}).share == 1
