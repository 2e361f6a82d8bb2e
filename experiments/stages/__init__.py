"""The stages of a run: imagine, train, evaluate, report."""
