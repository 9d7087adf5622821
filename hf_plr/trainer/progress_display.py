"""What a run shows while it trains: a bar in a terminal, and a line for what has just been found out."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.progress import Progress
from transformers import TrainerCallback

from hf_plr.utils.progress import CONSOLE, bars

STAGE, SCORE = "plr/", "score/"
EVENTS = ("split", "merged", "reshaped", "born", "died")


class ProgressDisplay(TrainerCallback):
    """A bar over all steps, and a line for every stage, epoch and evaluation: in place of `Trainer`'s own two displays.

    The lines tell the figures that people look at; the log has all of them.

    Args:
        bar: show the bar, where there is a terminal.
    """

    def __init__(self, bar: bool):
        self.bar = bar
        self._bars: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.bar and CONSOLE.is_terminal:
            self._bars = bars()
            self._task = self._bars.add_task("Training", total=state.max_steps, completed=state.global_step)
            self._bars.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bars is not None:
            epoch = f"Epoch {int(state.epoch or 0) + 1} of {state.num_train_epochs}"
            self._bars.update(self._task, completed=state.global_step, description=epoch)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            CONSOLE.print(escape(describe(logs, state.epoch or 0.0)), soft_wrap=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def describe(logs: dict[str, Any], epoch: float) -> str:
    """A line for an entry of the log.

    Args:
        logs: its figures.
        epoch: epochs that have been trained.
    """
    if f"{STAGE}seconds" in logs:
        words = _stage({name.removeprefix(STAGE): value for name, value in logs.items()})
    elif "train_runtime" in logs:
        words = f"trained in {logs['train_runtime']:.1f} s, mean loss {logs.get('train_loss', float('nan')):.4g}"
    elif any(name.startswith(SCORE) for name in logs):
        words = _scores({name.removeprefix(SCORE): value for name, value in logs.items() if name.startswith(SCORE)})
    else:
        told = {name: value for name, value in logs.items() if name not in ("epoch", "total_flos")}
        words = ", ".join(f"{name} {_number(value)}" for name, value in told.items() if f"_{STAGE}" not in name)
        ranks = [value for name, value in told.items() if name.endswith(f"{STAGE}effective_rank")]
        silhouettes = [value for name, value in told.items() if name.endswith(f"{STAGE}silhouette")]
        if ranks and silhouettes:
            scores = f"effective rank {ranks[0]:.1f}, silhouette {silhouettes[0]:.3f}"
            words = f"{words}, {scores}" if words else scores
    return f"epoch {epoch:5.1f}  {words}"


def _stage(figures: dict[str, Any]) -> str:
    """A stage's figures in words."""
    count = "units" if "units" in figures else "clusters"
    words = [f"{figures[count]:,.0f} {count}"] if count in figures else []
    events = [f"{figures[kind]:,.0f} {kind}" for kind in EVENTS if figures.get(kind)]
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
        if name in figures and not (name == "changed_share" and "soft_share" in figures and not figures[name]):
            words.append(text.format(figures[name]))
    return f"stage: {', '.join(words)}"


def _scores(figures: dict[str, Any]) -> str:
    """Scores in words, those with an interval followed by it."""
    words = []
    for name, value in figures.items():
        if name.endswith(("_low", "_high")):
            continue
        bounds = [figures[name + end] for end in ("_low", "_high") if name + end in figures]
        words.append(f"{name} {_number(value)}" + (" ({:.2f} to {:.2f})".format(*bounds) if bounds else ""))
    return f"scores: {', '.join(words)}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
