"""The six stages, one file each: the story and nothing else."""
