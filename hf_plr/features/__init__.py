"""Features of all samples: their extraction, where they are kept, and the space in which clusters are sought."""
