"""A Lightning callback that generates images of concepts during training, scores them, and logs scores and a panel."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torchmetrics.utilities import rank_zero_warn

from masc_metrics.arguments import check_function, check_keywords, check_positive, check_type
from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.images import Images
from masc_metrics.precision import DEFAULT_DTYPE, Dtype
from masc_metrics.settings import DEFAULT_ENCODE_BATCH_SIZE, DEFAULT_MODEL
from masc_metrics.validation.concept_scores import ConceptScorer, Segment
from masc_metrics.validation.concepts import Concept
from masc_metrics.validation.loggers import LogTarget, is_remote, log_panel, log_table
from masc_metrics.validation.panels import PanelChoice
from masc_metrics.validation.ranks import call_unsharded, is_sharded
from masc_metrics.validation.steps import checkpoint_step
from masc_metrics.validation.training_report import TrainingReport
from masc_metrics.validation.validate import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_PANEL_SIZE,
    ConceptValidation,
    OnError,
    ValidatedImage,
    ValidationError,
    ValidationSettings,
    run_validation,
)

__all__ = ["Concept", "MaSCValidation"]

Generate = Callable[[Any, list[str], int], Images]

_REPORTS = "masc_metrics_reports"
"""Key of a checkpoint: names of reports by the prefixes of their callbacks."""

_CALLS = {"generate": "generate(module, prompts, seed)", "segment": "segment(images, nouns)"}


class MaSCValidation(L.Callback):
    """Generates images of concepts while a model trains, scores them with MaSC, and logs the scores and a panel.

    On a schedule, and in ``Trainer.validate``, the callback generates one image for every prompt, distributed over the
    ranks without repeats. It logs the means over all images as ``val/masc_cp`` and ``val/masc_pf``, and the means of
    each concept as ``val/masc_cp/<concept>`` and ``val/masc_pf/<concept>``. The concept preservation of an image is
    its mean over the references of the concept. A panel of references, generated images with the outlines of their
    masks, scores and match maps is sent to TensorBoard and W&B, and written as a PNG file for any other logger. A table
    of all images is written as CSV and sent to W&B; that of the last validation is ``table``, a tuple of
    :class:`masc_metrics.validation.ValidatedImage`. The 95 % intervals of both means over concepts are logged as
    ``val/masc_cp_low``, ``val/masc_cp_high``, ``val/masc_pf_low`` and ``val/masc_pf_high``. With three or more
    concepts, ``val/masc_identified``, ``val/masc_mean_reciprocal_rank`` and ``val/masc_margin`` say whether images show
    their own concept rather than another one, as :class:`masc_metrics.MaSCIdentification` does.

    Training is bit-identical with and without the callback: random states and the train or eval mode of every module
    are restored. Nothing is added to checkpoints, but for the name of the report's file if there is one.

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
        seeds_per_prompt: number of images of every prompt, each with another seed.
        on_error: "warn" treats the samples of a batch whose generator or segmenter raises as undefined, with one
            warning per validation; "raise" stops training on all ranks.
        panel: "first" shows the first images of each concept; "worst" alternately that of lowest CP and that of lowest
            PF of those left, undefined ones first.
        panel_size: maximum numbers of concepts and of images per concept in the panel; None draws no panel.
        panel_dir: folder for panels as PNG files, in addition to the loggers, and for tables. With None, tables are
            written into ``masc_tables`` in the logger's folder, and panels into ``masc_panels``, there only for loggers
            that do not accept images.
        report: HTML file of a report on all validations so far, with curves and a slider through the steps, see
            :func:`masc_metrics.validation.add_to_report`. If it exists when a training starts anew, a version number is
            appended; a resumed training goes on with its own. None writes no report.
        prefix: prefix of all logged names.
        model_name_or_path: SigLIP2 checkpoint; this and the following settings are those of
            :class:`masc_metrics.MaSCConceptPreservation`.
        revision: branch, tag or commit on the hub.
        cache_dir: folder for downloads.
        local_files_only: never use the network.
        max_num_patches: patch budget of one image.
        dtype: precision of the backbone, such as ``torch.bfloat16`` or "bfloat16".
        encode_batch_size: samples encoded together.
        unknown: none; any other keyword is an error that names the nearest.

    Raises:
        TypeError, ValueError: if a setting is not accepted, or a concept lacks reference masks without a segmenter.
        ImportError: if the installed transformers is too old for the segmenter, or Jinja2 is missing for the report.

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
        seeds_per_prompt: int = 1,
        on_error: OnError = "warn",
        panel: PanelChoice = "first",
        panel_size: tuple[int, int] | None = DEFAULT_PANEL_SIZE,
        panel_dir: str | os.PathLike[str] | None = None,
        report: str | os.PathLike[str] | None = None,
        prefix: str = "val/",
        model_name_or_path: str | os.PathLike[str] | SigLIP2Backbone = DEFAULT_MODEL,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        dtype: Dtype = DEFAULT_DTYPE,
        encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
        **unknown: Any,
    ) -> None:
        super().__init__()
        *own, _ = inspect.signature(MaSCValidation).parameters
        check_keywords(unknown, "MaSCValidation", own)
        if every_n_epochs is None and every_n_steps is None:
            every_n_epochs = 1
        if every_n_epochs is not None and every_n_steps is not None:
            raise ValueError(f"every_n_epochs is {every_n_epochs} and every_n_steps is {every_n_steps}; give one")
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None:
                check_positive(name, value)
        check_type("prefix", prefix, str, "a string, such as 'val/'")
        if panel_dir is not None:
            check_type("panel_dir", panel_dir, (str, os.PathLike), "a folder")
            if not os.fspath(panel_dir) or is_remote(panel_dir):
                raise ValueError(f"panel_dir is {panel_dir!r}; give a local folder, or None for the loggers' folders")
        check_function("generate", generate, ("module", "prompts", "seed"))
        self.settings = ValidationSettings(batch_size, seed, seeds_per_prompt, on_error, panel, panel_size)
        self.generate = generate
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.panel_dir = None if panel_dir is None else Path(panel_dir).expanduser()
        self.report = None if report is None else TrainingReport.of(report)
        self.prefix = prefix
        self.table: tuple[ValidatedImage, ...] = ()
        encoder = {
            "model_name_or_path": model_name_or_path,
            "revision": revision,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "max_num_patches": max_num_patches,
            "dtype": dtype,
            "encode_batch_size": encode_batch_size,
        }
        self._scorer = ConceptScorer(concepts, segment, encoder, title="MaSCValidation")
        self._continued_report: TrainingReport | None = None
        self._trained = False
        self._last_step = 0
        self._last_epoch = self._trained_epoch = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raise ValueError if another callback logs under the same names, or into the same report."""
        callbacks = [other for other in getattr(trainer, "callbacks", ()) if isinstance(other, MaSCValidation)]
        if sum(other.prefix == self.prefix for other in callbacks) > 1:
            raise ValueError(f"two MaSCValidation callbacks have prefix {self.prefix!r}; give distinct prefixes")
        if self.report is not None and sum(other.report == self.report for other in callbacks) > 1:
            raise ValueError(f"two MaSCValidation callbacks have report {str(self.report.file)!r}; give distinct files")

    # Not state_dict, for which Lightning warns if a checkpoint is loaded without the callback.
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the name of the report's file, so that a resumed run continues its own; nothing without a report."""
        if self._continued_report is not None:
            checkpoint.setdefault(_REPORTS, {})[self.prefix] = self._continued_report.file.name

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue the report of the checkpoint, if it is a version of this callback's."""
        if self.report is not None:
            self._continued_report = self.report.version_of(checkpoint.get(_REPORTS, {}).get(self.prefix, ""))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the checkpoints and make missing reference masks, so that training does not start without them."""
        self._scorer.prepare(pl_module.device)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting at the current step, which is not 0 in a resumed run; score one batch as a check.

        Raises:
            ValidationError: if the check fails.
        """
        self._last_step = trainer.global_step
        self._last_epoch = self._trained_epoch = -1
        if trainer.is_global_zero and not _is_dev_run(trainer):
            try:
                self._start_report(trainer.global_step)
            except (OSError, ValueError) as reason:  # a ValueError if the folder beside it holds something else
                self._warn(trainer.global_step, f"the report could not be continued, {reason}")
        self._warn_if_never_due(trainer, pl_module)
        if trainer.num_sanity_val_steps:  # not in on_fit_start, which the module's own follows
            self._check_functions(trainer, pl_module)

    def _start_report(self, step: int) -> None:
        """Choose the file of the report: a new one for a training from its start, else the newest.

        A training from its start goes on with a report only if that has nothing but validations before the training.
        """
        if self.report is None:
            return
        if step == 0 and self._trained:
            self._continued_report = None
        if self._continued_report is None:
            self._continued_report = self.report.newest() if step else self.report.unused()
        self._continued_report.resume(step)
        self._trained = True

    def _warn_if_never_due(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _is_dev_run(trainer):
            return
        steps, epochs = _length(trainer, pl_module)
        unit, n, last, limit = "epochs", self.every_n_epochs, epochs, trainer.max_epochs
        if self.every_n_steps is not None:
            unit, n, last, limit = "steps", self.every_n_steps, steps, trainer.max_steps
        if n is not None and last < n:
            last_name = f"max_{unit}" if last == limit else f"the number of {unit}"
            rank_zero_warn(
                f"MaSCValidation: every_n_{unit} is {n} and {last_name} {last:.0f}, so it never validates; give at "
                f"most {last:.0f}",
                UserWarning,
            )

    def _check_functions(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        try:
            self._run(trainer, pl_module, check=True)
        except ValidationError as error:
            call = _CALLS.get(error.stage)
            hint = f"; it is called as {call}" if call else ""
            raise ValidationError(
                f"{error}, in the check before training{hint}; num_sanity_val_steps=0 skips the check", error.stage
            ) from error.__cause__

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
            self._validate(trainer, pl_module, _logged_step(trainer), loaded=None if in_fit else _loaded_step(trainer))

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
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        logged_step: int,
        *,
        between_steps: bool = False,
        loaded: int | None = None,
    ) -> None:
        """Validate and log, outside of training at the step of the loaded checkpoint, if there is one."""
        result = self._run(trainer, pl_module)
        self.table = result.table
        step = trainer.global_step
        if loaded is not None:
            logged_step = step = loaded
        self._log(trainer, pl_module, result, logged_step, between_steps=between_steps, direct=loaded is not None)
        if not trainer.is_global_zero:
            return
        self._warn(step, result.problems)
        if _is_dev_run(trainer):
            return
        epoch = "" if loaded is not None else f"epoch={trainer.current_epoch:04d}-"
        target = LogTarget(
            trainer.loggers,
            logged_step,
            self.prefix,
            f"{self.prefix.replace('/', '-')}{epoch}step={step:06d}",
            self.panel_dir,
            trainer.default_root_dir,
        )
        problems = []
        for what, write in (
            ("panel", functools.partial(log_panel, result.panel) if result.panel else None),
            ("table", functools.partial(log_table, result.table)),
            ("report", None if self.report is None else functools.partial(self._write_report, result, step)),
        ):
            try:
                if write is not None:
                    write(target)
            except Exception as reason:  # a full disk or an unreachable logger must not end training
                problems.append(f"the {what} could not be written, {type(reason).__name__}: {reason}")
        self._warn(step, "; ".join(problems))

    def _write_report(self, result: ConceptValidation, step: int, _: LogTarget) -> None:
        assert self.report is not None
        if self._continued_report is None:  # in Trainer.validate
            self._continued_report = self.report.newest() if step else self.report.unused()
        self._continued_report.add(result, step)

    def _run(self, trainer: L.Trainer, pl_module: L.LightningModule, *, check: bool = False) -> ConceptValidation:
        """Score all batches; as a check one on every rank, and whatever fails raises."""
        sharded = is_sharded(trainer.strategy.model or pl_module)
        # The sampler's arguments, not the world size: the ranks of a tensor-parallel group share one model.
        sampler = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {"num_replicas": 1, "rank": 0}
        settings, most_batches = self.settings, 1 if _is_dev_run(trainer) else None
        if check:
            settings, most_batches = replace(settings, on_error="raise"), sampler["num_replicas"]
        return run_validation(
            self._scorer,
            settings,
            functools.partial(self._generate, trainer, pl_module, sharded),
            modules=[pl_module],
            device=pl_module.device,
            share=(sampler["num_replicas"], sampler["rank"]),
            sharded=sharded,
            most_batches=most_batches,
            panel_errors=check,
        )

    def _warn(self, step: int, message: str) -> None:
        if message:
            warnings.warn(f"MaSCValidation at step {step}: {message}", UserWarning, stacklevel=2)

    def _generate(
        self, trainer: L.Trainer, pl_module: L.LightningModule, sharded: bool, prompts: list[str], seed: int
    ) -> Images:
        call = functools.partial(self.generate, pl_module, prompts, seed)
        with trainer.precision_plugin.val_step_context():
            if sharded:
                return call_unsharded(trainer.strategy.model or pl_module, pl_module, call)
            return call()

    def _log(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        result: ConceptValidation,
        step: int,
        *,
        between_steps: bool,
        direct: bool,
    ) -> None:
        """Log all scores as metrics of the current Lightning hook; at the step if between steps, or if direct."""
        scalars = {f"{self.prefix}masc_{name}": value for name, value in result.scores.items()}
        # Not as numbers, for which Lightning uses torch's default dtype.
        values = {
            name: torch.tensor(value, dtype=torch.float32, device=pl_module.device) for name, value in scalars.items()
        }
        if between_steps:
            pl_module.log_dict(values, on_step=True, on_epoch=False, logger=False, batch_size=1)
        else:  # equal on all ranks, so the mean does not change them
            pl_module.log_dict(values, sync_dist=True, logger=bool(trainer.loggers) and not direct, batch_size=1)
        if between_steps or direct:
            for (
                logger
            ) in trainer.loggers:  # because log_dict logs only every log_every_n_steps, and at Lightning's step
                logger.log_metrics(scalars, step=step)


def _is_dev_run(trainer: L.Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))  # set dynamically, so unknown to the type checker


def _logged_step(trainer: L.Trainer) -> int:
    """Step that Lightning assigns to values logged now, as used by its own callbacks."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def _length(trainer: L.Trainer, pl_module: L.LightningModule) -> tuple[float, float]:
    """Numbers of optimiser steps and of epochs with which training ends; infinite if it has no such limit."""
    steps, epochs = (
        math.inf if limit is None or limit < 0 else float(limit) for limit in (trainer.max_steps, trainer.max_epochs)
    )
    batches = trainer.num_training_batches
    if not pl_module.automatic_optimization or math.isinf(batches):  # the steps of an epoch are not known
        return steps, epochs
    steps_per_epoch = max(1, math.ceil(batches / trainer.accumulate_grad_batches))
    steps = min(steps, epochs * steps_per_epoch)
    return steps, min(epochs, steps if math.isinf(steps) else math.ceil(steps / steps_per_epoch))


def _loaded_step(trainer: L.Trainer) -> int | None:
    """Step of the checkpoint that ``Trainer.validate`` has loaded; None without one, or if it holds no step."""
    if trainer.ckpt_path is None:
        return None
    with contextlib.suppress(ValueError):
        return checkpoint_step(trainer.ckpt_path, trusted=True)  # Lightning has unpickled it already
    return None
