"""What a run shows: a plan, a bar in a terminal, and a line per stage, epoch and evaluation."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import ProgressCallback

from hf_plr.pseudo_labels.sampler import count_samples_per_epoch, count_samples_per_step
from hf_plr.report.summary import SCORE_PREFIX, STAGE_PREFIX, STAGE_SECONDS, list_values
from hf_plr.training_args import UnitTrainingArguments
from hf_plr.utils.progress import describe_time, has_terminal
from hf_plr.utils.words import count_noun

if TYPE_CHECKING:
    from hf_plr.trainer.base_trainer import BaseTrainer

EVENTS = ("split", "merged", "reshaped", "born", "died")
SHOWN_CLASSES = 4
FEW_STEPS = 20  # with less, the warm-up and the first labels are most of a run
TIMED_STEPS = 10  # after the first one, which is slower; fewer where an epoch has fewer


class ProgressDisplay(ProgressCallback):
    """Shows a run: `Trainer`'s own bar where there is a terminal, and lines that tell the metrics people look at.

    At the start it prints the plan, and once the first steps have run how long the rest will take. The log has all
    metrics.

    Args:
        trainer: its plan is shown.
        bar: show the bar, where there is a terminal.
    """

    def __init__(self, trainer: BaseTrainer, bar: bool):
        super().__init__()
        self.trainer = trainer
        self.bar = bar
        self._timer = StepTimer()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print the plan of the run."""
        if state.is_world_process_zero:
            self._timer = StepTimer()
            print("\n".join(f"{name:<9} {value}" for name, value in make_plan(self.trainer)), flush=True)
            if self.bar and has_terminal():
                super().on_train_begin(args, state, control, **kwargs)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock of a step."""
        self._timer.begin_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar, and say once how long the run will take."""
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)
        steps_left = state.max_steps - state.global_step
        if not state.is_world_process_zero or not steps_left:
            return
        if self._timer.end_step(min(TIMED_STEPS, steps_per_epoch(self.trainer) - 1)):
            stages = [entry[STAGE_SECONDS] for entry in state.log_history if STAGE_SECONDS in entry]
            stages_left = count_stages(self.trainer, state.max_steps) - count_stages(self.trainer, state.global_step)
            seconds = steps_left * self._timer.seconds_per_step + stages_left * (stages[-1] if stages else 0.0)
            self._print(f"time      about {describe_time(seconds)} left, without evaluations and checkpoints")

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Move the bar of an evaluation, where there is a terminal."""
        if self.bar and has_terminal():
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Print what is logged as one line, of a stage or a scoring all of it, also where a subclass logs less."""
        if state.is_world_process_zero and logs:
            self._print(describe({**logs, **(self.trainer.recorded or {})}, state.epoch or 0.0))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def _print(self, line: str) -> None:
        tqdm.write(line)  # above a bar, where there is one
        print(end="", flush=True)  # tqdm leaves the line in the buffer of a file or pipe


class StepTimer:
    """Mean time of the first steps but one.

    Attributes:
        seconds_per_step: the mean, once enough steps have been timed.
    """

    def __init__(self) -> None:
        self.seconds_per_step = 0.0
        self._step_began: float | None = None
        self._durations: list[float] = []
        self._is_done = False

    def begin_step(self) -> None:
        """Start the clock of an optimizer step; called at each of its accumulation steps too."""
        if self._step_began is None:
            self._step_began = time.perf_counter()

    def end_step(self, enough: int) -> bool:
        """Stop the clock; returns True at the one step after which enough (at least one) have been timed."""
        if self._is_done or self._step_began is None:
            return False
        self._durations.append(time.perf_counter() - self._step_began)
        self._step_began = None
        self._is_done = len(self._durations) > max(enough, 1)
        if self._is_done:
            timed = self._durations[1:]
            self.seconds_per_step = sum(timed) / len(timed)
        return self._is_done


def make_plan(trainer: BaseTrainer) -> list[tuple[str, str]]:
    """What a run is about to do, in lines of a name and a value."""
    args, state = trainer.args, trainer.state
    samples = count_noun(len(trainer.train_dataset), trainer.modality.noun, trainer.modality.plural)
    if trainer.train_dataset.segments is not None:
        samples += f" of {count_noun(len(np.unique(trainer.train_dataset.rows)), trainer.train_dataset.noun)}"
    if trainer.train_dataset.unreadable:
        samples += f", {len(trainer.train_dataset.unreadable):,} left out as unreadable"
    lost = trainer.modality.describe_loss_of_detail(trainer.train_dataset)
    samples += f", {lost}" if lost else ""
    rows = count_samples_per_step(args, trainer._train_batch_size)
    views = "" if trainer.views == 1 else f", each in {trainer.views} views"
    a_step = count_noun(rows // trainer.views, trainer.modality.noun, trainer.modality.plural)
    steps = f"{state.max_steps:,} of {a_step}{views}"
    if state.global_step >= state.max_steps:
        steps += ", all of them done before: nothing is left to train"
    elif state.global_step:
        steps += f", {state.global_step:,} of them done"
    if state.global_step < state.max_steps < FEW_STEPS:
        steps += ": too few to learn from, give more --num_train_epochs or a smaller --per_device_train_batch_size"
    precision = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else str(args.device)
    processes = "" if args.world_size == 1 else f" in each of {args.world_size} processes"
    n_threads = torch.get_num_threads()
    threads = f", {count_noun(n_threads, 'thread')}" if args.device.type == "cpu" else ""
    stages = "each" if trainer.epochs_per_stage == 1 else f"every {trainer.epochs_per_stage}"
    return [
        ("backbone", describe_backbone(trainer)),
        ("samples", samples),
        *([("continues", trainer.continues)] if trainer.continues else []),
        *([("scores", _describe_truth(trainer))] if trainer.label_column is not None else []),
        ("clusters", trainer.describe_clusters()),
        ("epochs", f"{state.num_train_epochs:g}, with a stage before {stages}"),
        ("steps", steps),
        ("device", f"{device}, {precision}{' (--bf16 false: float32)' * args.is_bf16_by_default}{threads}{processes}"),
    ]


def _describe_truth(trainer: BaseTrainer) -> str:
    """What features and clusters are scored by: a user may not know that names of folders are labels."""
    labels, numbers = trainer.train_dataset.labels, trainer.open_samples.label_numbers
    assert labels is not None
    classes = np.unique(labels[labels >= 0])
    names = {number: name for name, number in numbers.items()}
    shown = ", ".join(str(names.get(int(each), each)) for each in classes[:SHOWN_CLASSES])
    more = ", ..." if len(classes) > SHOWN_CLASSES else ""
    noun = "class" if len(classes) == 1 else "classes"
    return f"by {len(classes):,} {noun} in column {trainer.label_column!r} ({shown}{more}), which training does not see"


def describe_backbone(trainer: BaseTrainer) -> str:
    """Class of the backbone, its feature, and how much of it is trained at which rate."""
    args, model = trainer.args, trainer.modality.model
    # A backbone of waveforms has the one pooling.
    pooling = (
        "frames" if isinstance(args, UnitTrainingArguments) else getattr(trainer.modality.backbone, "pooling", "mean")
    )
    layer = "" if args.layer is None else f" of layer {args.layer}"
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    decay = "" if args.layer_decay == 1.0 else f", {args.layer_decay:g} of it from each layer to the one below"
    return (
        f"{type(model).__name__}, feature {pooling}{layer} of size {trainer.modality.feature_size}, "
        f"{trained:,} of {total:,} parameters trained, learning rate {_describe_rate(trainer)}{decay}"
    )


def _describe_rate(trainer: BaseTrainer) -> str:
    """The learning rate of the arguments, or those of an optimizer of the user's own."""
    groups = trainer.taken.optimizer
    if not groups:
        return f"{trainer.args.learning_rate:g}"
    return f"{list_values(groups, 'lr') or 'by default'} of {groups[0]['class']}"


def steps_per_epoch(trainer: BaseTrainer) -> int:
    """Optimizer steps of an epoch."""
    args, batch_size = trainer.args, trainer._train_batch_size
    return count_samples_per_epoch(args, len(trainer.train_dataset), batch_size) // count_samples_per_step(
        args, batch_size
    )


def count_stages(trainer: BaseTrainer, steps: int) -> int:
    """Stages that the first so many steps of a run need."""
    return math.ceil(steps / steps_per_epoch(trainer) / trainer.epochs_per_stage)


def describe(logs: dict[str, Any], epoch: float) -> str:
    """A line for an entry of the log.

    Args:
        logs: its metrics.
        epoch: epochs that have been trained.
    """
    if STAGE_SECONDS in logs:
        words = _describe_stage({name.removeprefix(STAGE_PREFIX): value for name, value in logs.items()})
    elif "train_runtime" in logs:
        words = f"trained in {logs['train_runtime']:.1f} s, mean loss {logs.get('train_loss', float('nan')):.4g}"
    elif any(name.startswith(SCORE_PREFIX) for name in logs):
        scores = {name: value for name, value in logs.items() if name.startswith(SCORE_PREFIX)}
        words = _describe_scores({name.removeprefix(SCORE_PREFIX): value for name, value in scores.items()})
    else:
        shown = {name: value for name, value in logs.items() if name not in ("epoch", "total_flos")}
        words = ", ".join(f"{name} {_number(value)}" for name, value in shown.items() if f"_{STAGE_PREFIX}" not in name)
        ranks = [value for name, value in shown.items() if name.endswith(f"{STAGE_PREFIX}effective_rank")]
        silhouettes = [value for name, value in shown.items() if name.endswith(f"{STAGE_PREFIX}silhouette")]
        if ranks and silhouettes:
            label_free = f"effective rank {ranks[0]:.1f}, silhouette {silhouettes[0]:.3f}"
            words = f"{words}, {label_free}" if words else label_free
    return f"epoch {epoch:5.1f}  {words}"


def _describe_stage(metrics: dict[str, Any]) -> str:
    """A stage's metrics in words."""
    count = "units" if "units" in metrics else "clusters"
    noun = count.removesuffix("s") if metrics.get(count) == 1 else count
    words = [f"{metrics[count]:,.0f} {noun}"] if count in metrics else []
    events = [f"{metrics[kind]:,.0f} {kind}" for kind in EVENTS if metrics.get(kind)]
    if events:
        words[-1:] = [f"{words[-1]} ({', '.join(events)})"]
    for name, text in (
        ("noise_share", "{:.1%} in none"),
        ("agreement_ari", "agreement with the last {:.2f}"),
        ("changed_share", "{:.1%} changed by refinement"),
        ("soft_share", "{:.1%} of the targets on other clusters by refinement"),
        ("effective_rank", "effective rank {:.1f}"),
        ("silhouette", "silhouette {:.2f}"),
        ("seconds", "{:.1f} s"),
    ):
        if name in metrics and not (name == "changed_share" and "soft_share" in metrics and not metrics[name]):
            words.append(text.format(metrics[name]))
    return f"stage: {', '.join(words)}"


def _describe_scores(scores: dict[str, Any]) -> str:
    """Scores in words, those with an interval followed by it."""
    words = []
    for name, value in scores.items():
        if name.endswith(("_low", "_high")):
            continue
        bounds = [scores[name + end] for end in ("_low", "_high") if name + end in scores]
        words.append(f"{name} {_number(value)}" + (" ({:.2f} to {:.2f})".format(*bounds) if bounds else ""))
    return f"scores: {', '.join(words)}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
