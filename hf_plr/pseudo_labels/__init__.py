"""What happens between two epochs: the stage, its labels, and the loss that they give."""
