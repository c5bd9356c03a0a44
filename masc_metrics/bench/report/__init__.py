"""A report on a table of scores, as one HTML file."""
