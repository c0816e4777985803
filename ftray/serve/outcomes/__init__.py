"""The store of exposures and outcomes."""
