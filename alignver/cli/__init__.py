"""The command line: ``alignver check``, ``train``, ``reproduce``, ``verify`` and ``report``; imports are lazy."""
