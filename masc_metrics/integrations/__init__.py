"""Integrations with other packages; the core does not import them."""
