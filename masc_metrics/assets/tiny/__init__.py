"""A small trained SigLIP2 checkpoint, and how it was made; README.md is its model card."""
