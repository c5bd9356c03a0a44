"""Where the metrics meet other packages; nothing here is imported by the core."""
