"""Phalanx: a distributed training engine as a library."""
