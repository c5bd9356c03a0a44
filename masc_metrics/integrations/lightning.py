"""A Lightning callback that generates images of concepts during training, scores them, and logs scores and a panel."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L

from masc_metrics.arguments import check_choice, check_integer, check_positive, check_type
from masc_metrics.images import Images
from masc_metrics.integrations.concept_scores import ConceptScorer, ConceptScores, Segment, problem_summary
from masc_metrics.integrations.concepts import Concept, GenerationTask, check_concepts, generation_tasks, rank_batches
from masc_metrics.integrations.isolation import isolated, seed_all
from masc_metrics.integrations.picture_log import draw_panel, is_remote, log_picture
from masc_metrics.integrations.ranks import all_gather, call_unsharded, is_sharded
from masc_metrics.plots import Shot

__all__ = ["Concept", "MaSCValidation"]

Generate = Callable[[Any, list[str], int], Images]
OnError = Literal["warn", "raise"]

DEFAULT_BATCH_SIZE = 4
DEFAULT_PANEL_SIZE = (4, 6)


class MaSCValidation(L.Callback):
    """Generates images of concepts while a model trains, scores them with MaSC, and logs the scores and a panel.

    On a schedule, and in ``Trainer.validate``, the callback generates one image for every prompt, distributed over the
    ranks without repeats. It logs the means over all images as ``val/masc_cp`` and ``val/masc_pf``, and the means of
    each concept as ``val/masc_cp/<concept>`` and ``val/masc_pf/<concept>``. The concept preservation of an image is
    its mean over the references of the concept. A panel of references, generated images with the outlines of their
    masks, scores and match maps is sent to TensorBoard and W&B, and written as a PNG file for any other logger.

    Training is bit-identical with and without the callback: random states and the train or eval mode of every module
    are restored. Nothing is added to checkpoints.

    Args:
        concepts: concepts to validate; see :class:`Concept`.
        generate: ``generate(pl_module, prompts, seed)`` returns one image for each prompt, in any form that the metrics
            accept. It runs without gradients, with the module in eval mode and in the trainer's precision. Torch, numpy
            and Python are seeded with ``seed`` before the call; a batch of prompts has the same seed in every
            validation and on any number of ranks.
        segment: name of a segmenter ("sam3", "clipseg", "grounded_sam2", "owlv2_sam2"), which is loaded onto the
            model's device; a segmenter of :func:`masc_metrics.segmenters.load_segmenter`; or any function
            ``segment(images, nouns)`` that returns a mask of the subject for each image that ``generate`` returned. A
            segmenter also makes the reference masks that concepts lack. With None, masks are transferred from the
            references, see :func:`masc_metrics.functional.transfer_masks`. How well that works is checked once on the
            references and logged as ``val/masc_mask_iou/<concept>``.
        every_n_epochs: validate at the end of every n-th epoch. If a validation loop ends with the last batch of the
            epoch, validate inside it, so that ModelCheckpoint and EarlyStopping can monitor the scores.
        every_n_steps: validate after every n optimiser steps instead. By default, validate after every epoch.
        batch_size: prompts in one call of ``generate``.
        seed: seed of the first batch, in [0, 2**32); the seeds of the next batches count up, modulo 2**32.
        on_error: "warn" treats the samples of a batch whose generator or segmenter raises as undefined, with one
            warning per validation; "raise" stops training on all ranks.
        panel_size: maximum numbers of concepts and of prompts per concept in the panel; None draws no panel.
        panel_dir: folder for panels as PNG files, in addition to the loggers; None writes them only for loggers that do
            not accept images, into ``masc_panels`` in the logger's folder.
        prefix: prefix of all logged names.
        metric_settings: settings of both metrics, such as ``model_name_or_path``, ``max_num_patches`` or ``dtype``; see
            :class:`masc_metrics.MaSCConceptPreservation`.

    Raises:
        TypeError, ValueError: if a setting is not accepted, or a concept lacks reference masks without a segmenter.
        ImportError: if the installed transformers is too old for the segmenter.

    A mean is NaN if no sample is defined. Source: MaSC, arXiv 2605.22469.
    """

    def __init__(
        self,
        concepts: Sequence[Concept],
        generate: Generate,
        segment: Segment | str | None = None,
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
        check_integer("seed", seed, least=0)
        if seed >= 2**32:
            raise ValueError(f"seed is {seed}; give an integer in [0, 2**32), the range of numpy's seeds")
        check_type("prefix", prefix, str, "a string, such as 'val/'")
        if panel_dir is not None:
            check_type("panel_dir", panel_dir, (str, os.PathLike), "a folder")
            if not os.fspath(panel_dir) or is_remote(panel_dir):
                raise ValueError(f"panel_dir is {panel_dir!r}; give a local folder, or None for the loggers' folders")
        check_choice("on_error", on_error, get_args(OnError))
        if not callable(generate):
            raise TypeError(f"generate is a {type(generate).__name__}; give a function")
        if not callable(segment) and not isinstance(segment, str | None):
            raise TypeError(f"segment is a {type(segment).__name__}; give a function, the name of a segmenter, or None")
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
        """Raise ValueError if another callback logs under the same names."""
        callbacks = getattr(trainer, "callbacks", ())
        if sum(isinstance(other, MaSCValidation) and other.prefix == self.prefix for other in callbacks) > 1:
            raise ValueError(f"two MaSCValidation callbacks have prefix {self.prefix!r}; give distinct prefixes")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the checkpoints and make missing reference masks, so that training does not start without them."""
        self._scorer.prepare(pl_module.device)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting at the current step, which is not 0 in a resumed run."""
        self._last_step = trainer.global_step
        self._last_epoch = self._trained_epoch = -1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Validate after every n-th optimiser step."""
        step = trainer.global_step  # may grow by more than one (several optimisers) or stay (gradient accumulation)
        n = self.every_n_steps
        if n is not None and step // n > self._last_step // n and not _is_dev_run(trainer):
            self._validate(trainer, pl_module, _logged_step(trainer), between_steps=True)
        self._last_step, self._trained_epoch = step, trainer.current_epoch

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate in ``Trainer.validate``, and in the last validation loop of every n-th epoch."""
        in_fit = trainer.state.fn == "fit"
        if not trainer.sanity_checking and (not in_fit or (trainer.is_last_batch and self._epoch_is_due(trainer))):
            self._last_epoch = trainer.current_epoch if in_fit else self._last_epoch
            self._validate(trainer, pl_module, _logged_step(trainer))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate after every n-th epoch, unless a validation loop has done so."""
        if self._epoch_is_due(trainer):
            self._validate(trainer, pl_module, max(0, _logged_step(trainer) - 1))

    def _epoch_is_due(self, trainer: L.Trainer) -> bool:
        # A run resumed at the end of an epoch calls this hook again without a batch.
        if trainer.current_epoch != self._trained_epoch or trainer.current_epoch == self._last_epoch:
            return False
        if _is_dev_run(trainer):  # runs everything once
            return True
        return self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _validate(
        self, trainer: L.Trainer, pl_module: L.LightningModule, logged_step: int, *, between_steps: bool = False
    ) -> None:
        tasks = generation_tasks(self.concepts)
        if _is_dev_run(trainer):
            tasks = tasks[: self.batch_size]
        panel_rows = self._panel_rows(tasks)
        sharded = is_sharded(trainer.strategy.model or pl_module)
        self._scorer.prepare(pl_module.device)
        error: Exception | None = None
        with isolated(pl_module, pl_module.device):
            for number, batch in self._rank_batches(trainer, tasks, sharded):
                prompts = [task.prompt for task in batch or tasks[: self.batch_size]]
                generate = functools.partial(self._generate, trainer, pl_module, number, prompts, sharded)
                if batch and error is None:
                    error = self._scorer.score_batch(batch, generate, sum(panel_rows, ()))
                    if self.on_error == "warn":
                        error = None  # its traceback would keep the tensors of the batch in memory
                elif sharded:  # the forward of a sharded model needs all ranks
                    with contextlib.suppress(Exception):
                        generate()
        reports = all_gather(self._scorer.report())
        failures = [(rank, failure) for rank, report in enumerate(reports) for failure in report.failures]
        fatal = [(rank, failure) for rank, failure in failures if failure.cp or failure.pf]  # a lost panel is not
        if fatal and self.on_error == "raise":
            rank, failure = fatal[0]
            raise RuntimeError(f"MaSCValidation, rank {rank}: {failure}") from error
        scores = self._scorer.scores(tasks)
        self._log(trainer, pl_module, tasks, scores, logged_step if between_steps else None)
        if not trainer.is_global_zero:
            return
        if message := problem_summary(scores, reports, transferred=self._scorer.segment is None):
            warnings.warn(f"MaSCValidation at step {trainer.global_step}: {message}", UserWarning, stacklevel=2)
        shots = {index: shot for report in reports for index, shot in report.shots.items()}
        try:
            self._send_panel(trainer, panel_rows, scores, shots, logged_step)
        except Exception as reason:  # a full disk or an unreachable logger must not end training
            text = f"the panel could not be written, {type(reason).__name__}: {reason}"
            warnings.warn(f"MaSCValidation at step {trainer.global_step}: {text}", UserWarning, stacklevel=2)

    def _panel_rows(self, tasks: Sequence[GenerationTask]) -> list[tuple[GenerationTask, ...]]:
        """Tasks in the panel, one row for each concept."""
        rows, columns = self.panel_size or (0, 0)
        tasks_of_concept = [tuple(task for task in tasks if task.concept == concept) for concept in range(rows)]
        return [row[:columns] for row in tasks_of_concept if row]

    def _rank_batches(
        self, trainer: L.Trainer, tasks: Sequence[GenerationTask], sharded: bool
    ) -> list[tuple[int, tuple[GenerationTask, ...]]]:
        # The sampler's arguments, not the world size: the ranks of a tensor-parallel group share one model.
        sampler = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {"num_replicas": 1, "rank": 0}
        return rank_batches(tasks, self.batch_size, sampler["num_replicas"], sampler["rank"], equal_counts=sharded)

    def _generate(
        self, trainer: L.Trainer, pl_module: L.LightningModule, number: int, prompts: list[str], sharded: bool
    ) -> Images:
        seed = (self.seed + number) % 2**32
        seed_all(seed)
        pl_module.eval()  # the previous call may have changed it
        call = functools.partial(self.generate, pl_module, prompts, seed)
        with trainer.precision_plugin.val_step_context():
            if sharded:
                return call_unsharded(trainer.strategy.model or pl_module, pl_module, call)
            return call()

    def _log(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        tasks: Sequence[GenerationTask],
        scores: ConceptScores,
        step: int | None,
    ) -> None:
        """Log all means at a training step; with None, as metrics of the current Lightning hook."""
        groups: dict[str, list[int] | None] = {"": None}
        for task in tasks:
            groups.setdefault(f"/{self.concepts[task.concept].name}", []).append(task.index)  # type: ignore[union-attr]
        values = {
            f"{self.prefix}masc_{score}{group}": value
            for group, indices in groups.items()
            for score, value in zip(("cp", "pf"), scores.means(indices), strict=True)
        }
        if (iou_C := self._scorer.transfer_iou_C) is not None:
            names = [concept.name for concept in self.concepts]
            on_device_C = iou_C.to(pl_module.device)
            values |= {f"{self.prefix}masc_mask_iou/{name}": iou for name, iou in zip(names, on_device_C, strict=True)}
        if step is None:
            pl_module.log_dict(
                values, sync_dist=True, batch_size=1
            )  # equal on all ranks, so the mean does not change them
            return
        pl_module.log_dict(values, on_step=True, on_epoch=False, logger=False, batch_size=1)
        scalars = {name: value.item() for name, value in values.items()}
        for logger in trainer.loggers:  # directly, because log_dict logs only every log_every_n_steps
            logger.log_metrics(scalars, step=step)

    def _send_panel(
        self,
        trainer: L.Trainer,
        panel_rows: Sequence[tuple[GenerationTask, ...]],
        scores: ConceptScores,
        shots: Mapping[int, Shot],
        step: int,
    ) -> None:
        if not panel_rows:
            return
        picture = draw_panel(self._scorer.concepts, panel_rows, scores, shots)
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
    return bool(getattr(trainer, "fast_dev_run", False))  # set dynamically, so unknown to the type checker


def _logged_step(trainer: L.Trainer) -> int:
    """Step that Lightning assigns to values logged now, as used by its own callbacks."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped
