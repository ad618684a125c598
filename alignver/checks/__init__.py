"""One question per file. Checks take arrays or operators and never import torch."""
