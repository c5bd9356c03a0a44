"""Baseline scores of images without masks, by other networks."""
