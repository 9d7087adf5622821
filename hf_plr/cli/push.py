"""Push the results of a run to the Hugging Face Hub.

  hf-plr push out --repo USER/NAME

`out` is the output folder of a run. Its backbone, processor, model card, picture, metrics, labels with the names of
files, and clusters with names, tree, history and features of up to 8,192 samples are pushed, nothing else: no report,
no checkpoint, no optimizer, no arguments. The commit has a tag that says how many epochs were trained, such as
epoch-30, but not with --revision.

The token is that of `hf auth login` or HF_TOKEN. Pushing again is safe: files on the Hub are not sent twice.
"""

from __future__ import annotations

import argparse

from hf_plr.hub.push import format_epoch_tag, push_folder, read_trained_epochs

SUMMARY = "push a run's backbone, card and labels to the Hub"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hf-plr push`."""
    add_hub_arguments(parser)


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of both push commands: folder and repository."""
    parser.add_argument("folder", metavar="OUT", help="output folder of a run")
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="the repository; it is made if missing")
    parser.add_argument(
        "--private",
        action="store_const",
        const=True,
        help="make it private; an error if it exists and is public",
    )
    parser.add_argument(
        "--revision", metavar="BRANCH", help="branch, made if missing, which gets no tag (default: the main one)"
    )


def run(args: argparse.Namespace) -> None:
    """Push, and print the list of files.

    Raises:
        ValueError: if the folder holds no trained backbone.
        HubError: if the push fails.
    """
    tag = format_epoch_tag(read_trained_epochs(args.folder)) if args.revision is None else None
    pushed = push_folder(args.folder, args.repo, private=args.private, revision=args.revision, tag=tag)
    mib = sum(path.stat().st_size for path in pushed.files) / 2**20
    print(f"{len(pushed.files)} files, {mib:.1f} MiB: {', '.join(path.name for path in pushed.files)}")
    if pushed.removed:
        print(f"Removed, of an earlier run: {', '.join(pushed.removed)}")
    print(f"On the Hub: {pushed.url}" + ("" if tag is None else f" (tag {tag})"))
