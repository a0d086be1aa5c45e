"""The training engine: knows video, tensors and checkpoints; knows nothing of jobs, messages or storage."""
