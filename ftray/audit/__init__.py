"""The dataset gate: what is wrong with the data, counted, with rows to look at and what to change."""
