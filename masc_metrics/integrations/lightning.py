"""A Lightning callback that validates concepts: it generates, segments, scores, logs, and shows what it saw."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L

from masc_metrics.arguments import check_positive
from masc_metrics.images import Images
from masc_metrics.integrations.concept_scores import ConceptScorer, ConceptScores, Segment, problem_summary
from masc_metrics.integrations.concepts import Concept, Order, check_concepts, dealt, orders_of
from masc_metrics.integrations.isolation import isolated, seed_all
from masc_metrics.integrations.picture_log import draw_panel, is_remote, log_picture
from masc_metrics.integrations.ranks import call_unsharded, gathered, is_sharded
from masc_metrics.plots import Shot

__all__ = ["Concept", "MaSCValidation"]

Generate = Callable[[Any, list[str], int], Images]
OnError = Literal["warn", "raise"]

DEFAULT_BATCH_SIZE = 4
DEFAULT_PANEL_SIZE = (4, 6)


class MaSCValidation(L.Callback):
    """Generates pictures of concepts while a model trains, scores them with MaSC, logs the scores and a picture panel.

    On a schedule, and in ``Trainer.validate``, it generates one picture for every prompt, dealt over the ranks without
    repeats, and logs ``val/masc_cp`` and ``val/masc_pf``, the means over all pictures, and
    ``val/masc_cp/<concept>`` and ``val/masc_pf/<concept>``. A picture's concept preservation is its mean over the
    concept's references. A panel of reference, generated pictures, masks' outlines, scores and match maps goes to
    TensorBoard and W&B, and into a folder of PNG files for any other logger.

    Training is not disturbed: random states and every module's train or eval mode are as before afterwards, and a run
    with the callback trains bit for bit as one without. Nothing is added to checkpoints.

    Args:
        concepts: what to generate; see :class:`Concept`.
        generate: ``generate(pl_module, prompts, seed)`` returns one picture for each prompt, in any form that the
            metrics take. It runs without gradients, with the module in eval mode and in the trainer's precision. Torch,
            numpy and Python are seeded with ``seed`` before; it is the same for the same prompts at every validation
            and on any number of ranks.
        segment: ``segment(images, nouns)`` returns the mask of each subject in the pictures that ``generate`` returned.
        every_n_epochs: validate at the end of every n-th epoch, inside its validation loop if one ends with the epoch's
            last batch, so that ModelCheckpoint and EarlyStopping can monitor the scores.
        every_n_steps: instead, after every n optimiser steps. With neither, at the end of every epoch.
        batch_size: prompts in one call of ``generate``.
        seed: of the first batch; the next ones count up, and from 2**32 - 1 go on at 0.
        on_error: "warn" turns a batch whose generator or segmenter raises into undefined samples, and says so once a
            validation; "raise" stops the training, on every rank.
        panel_size: concepts and prompts on the panel, the first of each; None draws none.
        panel_dir: folder for the panels as PNG files, whatever the loggers are; None writes them only for loggers that
            take no pictures, into ``masc_panels`` in their folder.
        prefix: of every logged name.
        metric_settings: of both metrics, such as ``model_name_or_path``, ``max_num_patches`` or ``dtype``; see
            :class:`masc_metrics.MaSCConceptPreservation`.

    Raises:
        TypeError, ValueError: for settings that are not accepted.

    Scores are NaN where no sample is defined. Source: MaSC, arXiv 2605.22469.
    """

    def __init__(
        self,
        concepts: Sequence[Concept],
        generate: Generate,
        segment: Segment,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        seed: int = 0,
        on_error: OnError = "warn",
        panel_size: tuple[int, int] | None = DEFAULT_PANEL_SIZE,
        panel_dir: str | os.PathLike[str] | None = None,
        prefix: str = "val/",
        **metric_settings: Any,
    ) -> None:
        super().__init__()
        if every_n_epochs is None and every_n_steps is None:
            every_n_epochs = 1
        if every_n_epochs is not None and every_n_steps is not None:
            raise ValueError(f"every_n_epochs is {every_n_epochs} and every_n_steps is {every_n_steps}; give one")
        for name, value in (
            ("every_n_epochs", every_n_epochs),
            ("every_n_steps", every_n_steps),
            ("batch_size", batch_size),
        ):
            if value is not None:
                check_positive(name, value)
        if panel_size is not None:
            if not isinstance(panel_size, Sequence) or len(panel_size) != 2:
                raise TypeError(f"panel_size is {panel_size!r}; give concepts and prompts, such as (4, 6), or None")
            for value in panel_size:
                check_positive("panel_size", value)
        if isinstance(seed, bool) or not hasattr(seed, "__index__"):
            raise TypeError(f"seed is a {type(seed).__name__}; give an integer")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed is {seed}; give one in [0, 2**32), which every generator takes")
        if not isinstance(prefix, str):
            raise TypeError(f"prefix is a {type(prefix).__name__}; give a string, such as 'val/'")
        if panel_dir is not None and not isinstance(panel_dir, (str, os.PathLike)):
            raise TypeError(f"panel_dir is a {type(panel_dir).__name__}; give a folder")
        if panel_dir is not None and (not os.fspath(panel_dir) or is_remote(panel_dir)):
            raise ValueError(f"panel_dir is {panel_dir!r}; give a folder of this machine, or None for the loggers' own")
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error is {on_error!r}; give 'warn' or 'raise'")
        for name, function in (("generate", generate), ("segment", segment)):
            if not callable(function):
                raise TypeError(f"{name} is a {type(function).__name__}; give a function")
        self.concepts = check_concepts(concepts)
        self.generate = generate
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.batch_size = batch_size
        self.seed = int(seed)
        self.on_error = on_error
        self.panel_size = panel_size
        self.panel_dir = None if panel_dir is None else Path(panel_dir)
        self.prefix = prefix
        self._scorer = ConceptScorer(self.concepts, segment, metric_settings)
        self._last_step = 0
        self._last_epoch = self._trained_epoch = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a second callback that would log under the same names."""
        callbacks = getattr(trainer, "callbacks", ())
        if sum(isinstance(other, MaSCValidation) and other.prefix == self.prefix for other in callbacks) > 1:
            raise ValueError(f"two MaSCValidation callbacks have prefix {self.prefix!r}; give each its own")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Have the checkpoint there before hours of training are spent."""
        self._scorer.start(pl_module.device)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count on from here, which is the middle of a run that is resumed."""
        self._last_step = trainer.global_step
        self._last_epoch = self._trained_epoch = -1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Validate after every n-th optimiser step."""
        step = trainer.global_step  # with several optimisers it grows by more than one, and not with every batch
        n = self.every_n_steps
        if n is not None and step // n > self._last_step // n and not _is_dev_run(trainer):
            self._validate(trainer, pl_module, _stepped(trainer), between_steps=True)
        self._last_step, self._trained_epoch = step, trainer.current_epoch

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate in ``Trainer.validate``, and in the last validation loop of every n-th epoch."""
        in_fit = trainer.state.fn == "fit"
        if not trainer.sanity_checking and (not in_fit or (trainer.is_last_batch and self._epoch_is_due(trainer))):
            self._last_epoch = trainer.current_epoch if in_fit else self._last_epoch
            self._validate(trainer, pl_module, _stepped(trainer))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate after every n-th epoch, if no validation loop has seen its end."""
        if self._epoch_is_due(trainer):
            self._validate(trainer, pl_module, max(0, _stepped(trainer) - 1))

    def _epoch_is_due(self, trainer: L.Trainer) -> bool:
        # A run that is resumed at an epoch's end comes by again without a batch, in some Lightnings with a validation.
        if trainer.current_epoch != self._trained_epoch or trainer.current_epoch == self._last_epoch:
            return False
        if _is_dev_run(trainer):  # which is to touch everything once
            return True
        return self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _validate(
        self, trainer: L.Trainer, pl_module: L.LightningModule, logged_step: int, *, between_steps: bool = False
    ) -> None:
        orders = orders_of(self.concepts)
        if _is_dev_run(trainer):
            orders = orders[: self.batch_size]
        shown = self._shown(orders)
        sharded = is_sharded(trainer.strategy.model or pl_module)
        self._scorer.start(pl_module.device)
        error: Exception | None = None
        with isolated(pl_module, pl_module.device):
            for number, batch in self._share(trainer, orders, sharded):
                prompts = [order.prompt for order in batch or orders[: self.batch_size]]
                generate = functools.partial(self._generate, trainer, pl_module, number, prompts, sharded)
                if batch and error is None:
                    error = self._scorer.add(batch, generate, sum(shown, ()))
                    if self.on_error == "warn":
                        error = None  # its frames hold the batch, for which there may be no memory a second time
                elif sharded:  # the other ranks need this one in their forwards
                    with contextlib.suppress(Exception):
                        generate()
        reports = gathered(self._scorer.report())
        failures = [(rank, failure) for rank, report in enumerate(reports) for failure in report.failures]
        costly = [(rank, failure) for rank, failure in failures if failure.cp or failure.pf]  # a panel costs no score
        if costly and self.on_error == "raise":
            rank, failure = costly[0]
            raise RuntimeError(f"MaSCValidation, rank {rank}: {failure}") from error
        scores = self._scorer.scores(orders)
        self._log(trainer, pl_module, orders, scores, logged_step if between_steps else None)
        if not trainer.is_global_zero:
            return
        if message := problem_summary(scores, reports):
            warnings.warn(f"MaSCValidation at step {trainer.global_step}: {message}", UserWarning, stacklevel=2)
        shots = {index: shot for report in reports for index, shot in report.shots.items()}
        try:
            self._send_panel(trainer, shown, scores, shots, logged_step)
        except Exception as lost:  # a full disk or a logger without connection is no reason to end a training
            text = f"the panel is lost, {type(lost).__name__}: {lost}"
            warnings.warn(f"MaSCValidation at step {trainer.global_step}: {text}", UserWarning, stacklevel=2)

    def _shown(self, orders: Sequence[Order]) -> list[tuple[Order, ...]]:
        """The orders that the panel shows, a row for each concept."""
        rows, columns = self.panel_size or (0, 0)
        of_concept = [tuple(order for order in orders if order.concept == place) for place in range(rows)]
        return [found[:columns] for found in of_concept if found]

    def _share(self, trainer: L.Trainer, orders: Sequence[Order], sharded: bool) -> list[tuple[int, tuple[Order, ...]]]:
        # Lightning's own answer, since the ranks of a tensor-parallel group hold one model between them.
        place = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {"num_replicas": 1, "rank": 0}
        return dealt(orders, self.batch_size, place["num_replicas"], place["rank"], in_step=sharded)

    def _generate(
        self, trainer: L.Trainer, pl_module: L.LightningModule, number: int, prompts: list[str], sharded: bool
    ) -> Images:
        seed = (self.seed + number) % 2**32
        seed_all(seed)
        pl_module.eval()  # again, since the last call may have changed it
        call = functools.partial(self.generate, pl_module, prompts, seed)
        with trainer.precision_plugin.val_step_context():
            if sharded:
                return call_unsharded(trainer.strategy.model or pl_module, pl_module, call)
            return call()

    def _log(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        orders: Sequence[Order],
        scores: ConceptScores,
        step: int | None,
    ) -> None:
        """Log every mean; at a step of the training, or, with None, as what this hook of Lightning's logs."""
        groups: dict[str, list[int] | None] = {"": None}
        for order in orders:
            groups.setdefault(f"/{self.concepts[order.concept].name}", []).append(order.index)  # type: ignore[union-attr]
        values = {
            f"{self.prefix}masc_{score}{group}": value
            for group, indices in groups.items()
            for score, value in zip(("cp", "pf"), scores.means(indices), strict=True)
        }
        if step is None:
            pl_module.log_dict(values, sync_dist=True, batch_size=1)  # equal on all ranks, so the mean is the value
            return
        pl_module.log_dict(values, on_step=True, on_epoch=False, logger=False, batch_size=1)
        scalars = {name: value.item() for name, value in values.items()}
        for logger in trainer.loggers:  # now: Lightning itself would wait for a multiple of log_every_n_steps
            logger.log_metrics(scalars, step=step)

    def _send_panel(
        self,
        trainer: L.Trainer,
        shown: Sequence[tuple[Order, ...]],
        scores: ConceptScores,
        shots: Mapping[int, Shot],
        step: int,
    ) -> None:
        if not shown:
            return
        picture = draw_panel(self.concepts, shown, scores, shots)
        if _is_dev_run(trainer):
            return
        log_picture(
            picture,
            trainer.loggers,
            tag=f"{self.prefix}masc_panel",
            step=step,
            stem=f"{self.prefix.replace('/', '-')}epoch={trainer.current_epoch:04d}-step={trainer.global_step:06d}",
            folder=self.panel_dir,
            fallback=trainer.default_root_dir,
        )


def _is_dev_run(trainer: L.Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))  # set by a function that types do not follow


def _stepped(trainer: L.Trainer) -> int:
    """Where Lightning puts what is logged now, as its own callbacks ask it."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped
