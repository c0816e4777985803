"""A/B experiments: what one is, who gets which arm, and statistics that may be looked at at any time."""
