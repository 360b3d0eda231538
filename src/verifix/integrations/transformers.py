"""A callback for the Trainer of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader

from verifix.integrations.at_end import AtEnd
from verifix.io.optional_imports import library

if TYPE_CHECKING:
    TrainerCallback = object
else:
    TrainerCallback = library("transformers", "transformers", "text").TrainerCallback


class TrainerCorrection(AtEnd, TrainerCallback):
    """Correct the model at the end of `Trainer.train`, and prove the gain; the figures go to the log history.

    It comes after the best checkpoint has been loaded. `Trainer.save_model` then writes the corrected weights. A
    dataset of dictionaries, such as one of the datasets library, is collated as the training samples are.

    Examples
    --------
    >>> import torch
    >>> from verifix.integrations import TrainerCorrection
    >>> verified = {"input_ids": torch.randint(5, 90, (60, 7))}, torch.arange(60) % 2
    >>> callback = TrainerCorrection(verified, verified_from="unseen")  # Trainer(…, callbacks=[callback])
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002
        """Check what can be checked before the training."""
        self.check(others["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002
        """Correct, prove, apply and log; see `AtEnd`."""
        model: nn.Module = others["model"]
        verified = self.verified
        if hasattr(verified, "__getitem__") and not isinstance(verified, tuple | dict | list):
            collate = others["train_dataloader"].collate_fn
            verified = DataLoader(verified, batch_size=args.eval_batch_size, collate_fn=collate)
        state.log_history.append({**self.correct(model, verified), "epoch": state.epoch, "step": state.global_step})
