"""What has nothing to do with clusters: files, processes, random numbers, text."""
