"""Names of `websockets.legacy` that annotations and `except` clauses still use. The legacy classes are not here."""
