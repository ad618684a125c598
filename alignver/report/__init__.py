"""Reports as people and programs read them: text, JSON with its schema, provenance, progress."""
