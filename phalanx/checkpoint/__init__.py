"""Checkpoints: verified snapshots of a job, written behind the step loop, restored on any number of workers."""
