"""What goes to the Hugging Face Hub: backbones with model cards, and labels as data sets."""
