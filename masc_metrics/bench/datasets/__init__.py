"""DreamBench++ and ORIDa: their folder layouts as samples, and their commands."""
