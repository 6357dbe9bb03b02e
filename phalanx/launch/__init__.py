"""Phalanx."""
