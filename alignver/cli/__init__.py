"""The command line: ``alignver check`` and ``alignver verify``. NumPy and torch are imported when needed."""
