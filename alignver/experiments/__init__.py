"""Problems with known answers: the paper's, as code."""
