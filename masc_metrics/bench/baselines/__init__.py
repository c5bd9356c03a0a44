"""Scores of whole images by other networks, to stand beside MaSC."""
