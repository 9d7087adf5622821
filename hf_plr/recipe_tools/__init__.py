"""What the recipes share: arguments, files of arguments, fine-tuning, and the run from start to end."""
