"""A small trained SigLIP2 checkpoint and its training program; README.md is the model card."""
