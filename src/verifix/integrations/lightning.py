"""A callback for Lightning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from verifix.integrations.at_end import AtEnd
from verifix.io.optional_imports import library

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    Callback = library("lightning.pytorch", "lightning", "lightning").Callback


class LightningCorrection(AtEnd, Callback):
    """Correct the module at the end of `Trainer.fit`, and prove the gain; the figures go to the loggers.

    The module's ``forward``, or that of its part `module`, must return logits. `Trainer.save_checkpoint` after the fit
    writes the corrected weights; checkpoints that were written during the training hold the uncorrected ones.

    Examples
    --------
    >>> from lightning.pytorch import Trainer
    >>> from verifix.integrations import LightningCorrection
    >>> callback = LightningCorrection((torch.randn(60, 4), torch.arange(60) % 2), verified_from="unseen", module="net")
    >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002  # Lightning's signature
        """Check what can be checked before the training."""
        self.check(pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Correct, prove, apply and log; see `AtEnd`."""
        with _apart(pl_module):
            figures = self.correct(pl_module, self.verified)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in figures.items()})
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)


@contextmanager
def _apart(module: Any) -> Iterator[None]:
    """Part a module from its trainer, which would be copied with it."""
    trainer = module.trainer
    module.trainer = None
    try:
        yield
    finally:
        module.trainer = trainer
