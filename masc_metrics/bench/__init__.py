"""Scoring of many samples from files: sample list -> images -> scores -> journal -> table."""
