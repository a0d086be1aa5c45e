"""Clips and captions: judging, reading, sampling, batching."""
