"""The same jobs on a cluster that others use too: through Ray's Jobs API, once however often they are submitted."""
