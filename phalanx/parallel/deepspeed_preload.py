"""Loaded by a warm server before it forks workers: DeepSpeed, set up as `deepspeed_setup` has it."""

from .deepspeed_setup import load

load()
