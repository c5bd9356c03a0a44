"""What comes with the package besides code."""
