"""Models of tokens: padding never counts, and batches and outputs come in every form the field uses."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import verifix
from tests.cases import small_data, small_net
from verifix.errors import DataError, UsageError

ALPHA, WORDS, WIDTH = 50.0, 30, 16


class Encoder(nn.Module):
    """A text classifier on torch's own encoder layers."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embedding = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=batch_first, dropout=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.encoder = nn.TransformerEncoder(layer, 2)
        self.lift = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, src: Tensor, src_key_padding_mask: Tensor | None = None) -> Tensor:
        x = self.embedding(src)
        x = self.lift(x if self.batch_first else x.transpose(0, 1))
        x = self.encoder(x, src_key_padding_mask=src_key_padding_mask)
        x = x if self.batch_first else x.transpose(0, 1)
        real = torch.ones_like(src) if src_key_padding_mask is None else (~src_key_padding_mask).long()
        return self.head((x * real[..., None]).sum(1) / real.sum(1, keepdim=True))


class InnerMask(Encoder):
    """The mask is made inside, after a first layer if `late`."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.late = late
        self.inner = Encoder()

    def forward(self, src: Tensor) -> Tensor:
        if self.late:
            self.lift(self.embedding(src))
        return self.inner(src, src_key_padding_mask=src == 0)


def texts(n: int = 60, longest: int = 7) -> list[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(2, longest + 1, (n,), generator=generator)
    return [(torch.randint(1, WORDS, (int(length),), generator=generator), i % 3) for i, length in enumerate(lengths)]


def padded(items, extra: int = 0, longest: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.zeros(len(items), longest + extra, dtype=torch.long)
    for row, (words, _) in zip(ids, items, strict=True):
        row[: len(words)] = words
    return ids, ids == 0, torch.tensor([y for _, y in items])


def weights(correction) -> Tensor:
    return torch.cat([x.flatten().double() for x in correction.corrected.values()])


def corrected(model: nn.Module, verified, **options) -> Tensor:
    return weights(verifix.correct(model, verified, alpha=ALPHA, progress=False, **options))


def one_by_one(model: nn.Module, items) -> Tensor:
    """The same correction without any padding: every batch is a single text."""
    loader = DataLoader([(words, y) for words, y in items], batch_size=1)
    return corrected(model, loader, padding=False)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("batch_size", [5, 60])
@pytest.mark.parametrize("extra", [0, 4, 124])
def test_padding_changes_nothing_whatever_its_length_and_the_order_of_axes(batch_first, extra, batch_size):
    model, items = Encoder(batch_first).eval(), texts()
    ids, mask, labels = padded(items, extra)
    found = corrected(model, ({"src": ids, "src_key_padding_mask": mask}, labels), batch_size=batch_size)
    want = one_by_one(model, items)
    assert float((found - want).norm() / want.norm()) < 1e-6
    if extra == 124:
        unmasked = corrected(model, ids_only(ids, labels), padding=False)
        assert float((unmasked - want).norm() / want.norm()) > 1e-2  # the mask is what does it


def ids_only(ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return ids, labels


def test_a_batch_with_as_many_samples_as_tokens_is_run_in_parts():
    model, items = Encoder(batch_first=False).eval(), texts()
    ids, mask, labels = padded(items)
    assert ids.shape[1] == 7
    found = corrected(model, ({"src": ids, "src_key_padding_mask": mask}, labels), batch_size=7)
    want = one_by_one(model, items)
    assert float((found - want).norm() / want.norm()) < 1e-6


def test_ids_with_padding_and_without_a_mask_are_refused_with_the_reason():
    model, items = Encoder().eval(), texts()
    ids, _, labels = padded(items)
    with pytest.raises(
        DataError, match=r"contain the model's pad id 0, and no padding mask .* 'lift.weight'.*--no-padding"
    ):
        corrected(model, (ids, labels))
    assert corrected(model, (ids, labels), padding=False).numel()
    assert corrected(model, (ids.clamp(min=1), labels)).numel()


def test_a_mask_that_the_model_makes_itself_is_found_before_the_first_layer_only():
    items = texts()
    ids, _, labels = padded(items)
    early = InnerMask(late=False).eval()
    found, want = corrected(early, (ids, labels), batch_size=60), one_by_one(early, items)
    assert float((found - want).norm() / want.norm()) < 1e-6
    with pytest.raises(DataError, match=r"before layer 'lift.weight'"):
        corrected(InnerMask(late=True).eval(), (ids, labels))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 1)
        self.lstm = nn.LSTM(WIDTH, 8, batch_first=True)
        self.query = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.convolution(self.embedding(input_ids).transpose(1, 2)).transpose(1, 2)
        x = self.lstm(x)[0] * attention_mask[..., None]
        pooled = self.query(x.sum(1, keepdim=True))
        x = self.attention(pooled, x, x, key_padding_mask=attention_mask == 0)[0]
        return self.head(x[:, 0])


def test_convolutions_recurrence_and_attention_leave_padding_out():
    model, items = Recurrent().eval(), texts()
    results = []
    for extra in (0, 4, 124):
        ids, mask, labels = padded(items, extra)
        results.append(corrected(model, ({"input_ids": ids, "attention_mask": (~mask).long()}, labels), batch_size=9))
    single = DataLoader(
        [{"input_ids": words, "attention_mask": torch.ones_like(words), "labels": y} for words, y in items]
    )
    want = corrected(model, single)
    for found in results:
        assert float((found - want).norm() / want.norm()) < 1e-6


class Strided(nn.Module):
    """Audio-shaped: samples of sound, thinned out by convolutions that reach over no edge."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 6, 4, stride=2)
        self.second = nn.Conv1d(6, 8, 3, stride=2)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, input_values: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.second(self.first(input_values[:, None]).relu()).relu()
        x = self.mix(x.transpose(1, 2))
        lengths = ((attention_mask.sum(1) - 4) // 2 + 1 - 3) // 2 + 1
        real = torch.arange(x.shape[1]) < lengths[:, None]
        return self.head((x * real[..., None]).sum(1))


def test_padded_sound_through_strided_convolutions_counts_whole_patches_of_sound_only():
    model = Strided().eval()
    lengths = torch.arange(60) % 17 + 20
    sounds = [torch.randn(int(n)) for n in lengths]
    labels = torch.arange(60) % 3
    values = nn.utils.rnn.pad_sequence(sounds, batch_first=True)
    mask = (torch.arange(values.shape[1]) < lengths[:, None]).long()
    verified = {"input_values": values, "attention_mask": mask}, labels
    with pytest.raises(DataError, match="batch of 8 samples has the same number of tokens after a convolution"):
        corrected(model, verified, batch_size=8)
    rows = [{"input_values": v, "attention_mask": m, "labels": y} for v, m, y in zip(values, mask, labels, strict=True)]
    found = corrected(model, DataLoader(rows, batch_size=8))  # whose size is lowered by itself
    single = DataLoader(
        [
            {"input_values": x, "attention_mask": torch.ones(len(x), dtype=torch.long), "labels": int(y)}
            for x, y in zip(sounds, labels, strict=True)
        ]
    )
    want = corrected(model, single)
    assert float((found - want).norm() / want.norm()) < 1e-6


class Jagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x).relu()
        pooled = torch.stack([part.mean(0) for part in x.unbind()]) if x.is_nested else x.mean(1)
        return self.head(pooled)


def test_jagged_inputs_have_no_padding_to_leave_out():
    model = Jagged().eval()
    parts = [torch.randn(n % 5 + 1, 8) for n in range(60)]
    labels = torch.arange(60) % 3
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    found = corrected(model, (nested, labels), batch_size=8)
    want = corrected(model, DataLoader([(x, int(y)) for x, y in zip(parts, labels, strict=True)]))
    assert float((found - want).norm() / want.norm()) < 1e-6


class Two(nn.Module):
    """Two inputs; the output in any form."""

    def __init__(self, form=lambda logits: logits) -> None:
        super().__init__()
        self.a, self.b, self.form = nn.Linear(4, 3), nn.Linear(4, 3), form

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> object:
        return self.form(self.a(left) + scale * self.b(right))


def halves() -> tuple[Tensor, Tensor, Tensor]:
    x, y = small_data()
    return x[:, :4], x[:, 4:], y


class Stream(IterableDataset):
    def __iter__(self):
        left, right, y = halves()
        yield from ({"left": a, "right": b, "y": int(c)} for a, b, c in zip(left, right, y, strict=True))


def test_every_form_of_a_batch_gives_the_same_correction():
    left, right, y = halves()
    model = Two().eval()
    rows = list(zip(left, right, y, strict=True))
    forms = {
        "tuple": ((left, right), y),
        "dict": ({"left": left, "right": right}, y),
        "dict with labels": {"left": left, "right": right, "labels": y},
        "dataset of pairs": [((a, b), int(c)) for a, b, c in rows],
        "dataset of dicts": [{"left": a, "right": b, "target": int(c)} for a, b, c in rows],
        "loader of dicts": DataLoader([{"left": a, "right": b, "label": c, "note": "x"} for a, b, c in rows], 16),
        "stream": Stream(),
        "loader of a stream": DataLoader(Stream(), batch_size=16),
        "stream of batches": DataLoader(
            [({"left": left[i : i + 20], "right": right[i : i + 20]}, y[i : i + 20]) for i in range(0, 80, 20)],
            batch_size=None,
        ),
    }
    want = corrected(model, forms.pop("tuple"))
    for name, form in forms.items():
        torch.testing.assert_close(corrected(model, form), want, rtol=1e-6, atol=1e-7, msg=name)  # batches differ


def test_every_form_of_an_output_is_read(vision):
    from transformers.modeling_outputs import SequenceClassifierOutput

    left, right, y = halves()
    state, want = None, None
    for form in (
        lambda logits: logits,
        lambda logits: {"logits": logits, "hidden": None},
        lambda logits: SequenceClassifierOutput(logits=logits),
        lambda logits: (logits, None),
        lambda logits: [logits],
    ):
        model = Two(form).eval()
        state = state or model.state_dict()
        model.load_state_dict(state)
        found = corrected(model, ((left, right), y))
        want = found if want is None else want
        assert torch.equal(found, want)
    with pytest.raises(DataError, match="returned a NoneType"):
        corrected(Two(lambda logits: None).eval(), ((left, right), y))


def test_forward_says_how_a_batch_enters_the_model():
    left, right, y = halves()
    model = Two().eval()
    want = corrected(model, ((left, 2 * right), y))

    def forward(module: nn.Module, inputs: Tensor) -> dict:
        return {"logits": module(inputs[:, :4], right=inputs[:, 4:] * 2)}

    both = torch.cat([left, right], 1)
    torch.testing.assert_close(corrected(model, (both, y), forward=forward), want)
    with pytest.raises(DataError, match=r"the model cannot run on inputs of shape \[2, 8\]"):
        corrected(model, (both, y))
    survey = verifix.inspect(model, both, forward=forward)
    assert survey.share == 1
    assert len(verifix.collect_moments(model, (both, y), forward=forward, progress=False).moments) == 2


def test_a_model_that_takes_the_dictionary_itself_gets_it():
    class Whole(Two):
        def forward(self, batch: dict) -> Tensor:
            return super().forward(batch["left"], batch["right"])

    left, right, y = halves()
    model = Whole().eval()
    found = corrected(model, ({"left": left, "right": right}, y))
    plain = Two().eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(found, corrected(plain, ((left, right), y)))


ODD = {
    "no label": (lambda x, y: {"x": x}, "must be under one of labels, label"),
    "two labels": (lambda x, y: {"x": x, "label": y, "labels": 1 - y}, "labels under labels and label, which differ"),
    "three parts": (lambda x, y: DataLoader([(a, a, b) for a, b in zip(x, y, strict=True)]), "has 3 parts"),
    "lengths": (lambda x, y: ({"input": x[:-1]}, y), "do not match; give one label"),
    "no tensors": (lambda x, y: [("text", int(b)) for b in y], "without tensors"),
    "nan inside": (lambda x, y: ({"input": x * float("nan")}, y), "input of sample 0 contains NaN"),
    "scalar": (lambda x, y: 3, "verified is a int"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_batches_are_refused_in_one_line(name):
    make, message = ODD[name]
    with pytest.raises((DataError, UsageError), match=message) as caught:
        verifix.correct(small_net().eval(), make(*small_data()), alpha=9, progress=False)
    assert "\n" not in str(caught.value)


def test_capturing_an_encoder_changes_none_of_its_logits():
    from tests.cases import captured

    model, items = Encoder().eval(), texts()
    ids, mask, _ = padded(items, 4)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own remark on nested tensors
        plain = model(ids, mask)  # on the fused path, which hands nested tensors around
    outputs = []
    model.register_forward_hook(lambda module, args, output: outputs.append(output))

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, src: Tensor) -> Tensor:
            return self.model(src, src_key_padding_mask=mask)

    captured(Masked(), ids)
    torch.testing.assert_close(outputs[-1], plain, rtol=1e-5, atol=1e-6)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Albert", "GPT2"])
def test_texts_for_transformers_give_the_same_weights_with_0_4_and_124_tokens_of_padding(family, vision):
    from tests.capture.test_families import FAMILIES

    model = FAMILIES[f"transformers {family.lower()}"][0]().eval()
    items, results = texts(), []
    for extra in (0, 4, 124):
        ids, mask, labels = padded(items, extra)
        inputs = {"input_ids": ids, "attention_mask": (~mask).long()}
        results.append(corrected(model, (inputs, labels), batch_size=16))
        with pytest.raises(DataError, match="contain the model's pad id 0"):
            corrected(model, ({"input_ids": ids}, labels))
    for found in results[1:]:
        assert float((found - results[0]).norm() / results[0].norm()) < 1e-6
