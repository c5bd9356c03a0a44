"""Scoring of many samples from files; nothing in the core imports it."""
