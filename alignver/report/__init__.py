"""Reports as people and programs read them: text, JSON, HTML, JUnit XML, figures, provenance, progress."""
