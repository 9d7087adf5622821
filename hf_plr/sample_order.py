"""How many samples training takes, and the seed of their order."""

from __future__ import annotations

from hf_plr.training_args import PLRTrainingArguments


def data_seed(args: PLRTrainingArguments) -> int:
    """Seed of the order of training."""
    return args.seed if args.data_seed is None else args.data_seed


def samples_per_step(args: PLRTrainingArguments) -> int:
    """Samples of an optimizer step, of all processes and accumulation steps together."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def samples_per_epoch(args: PLRTrainingArguments, n_samples: int) -> int:
    """Samples between two stages: whole steps, so that they are the same for any number of processes.

    Where the last step lacks samples, it takes the first ones of the next pass; with `dataloader_drop_last` it is left
    out.
    """
    step = samples_per_step(args)
    if args.steps_per_epoch is not None:
        return step * args.steps_per_epoch
    return step * max(1, n_samples // step if args.dataloader_drop_last else -(-n_samples // step))
