"""Sweep campaigns: many trials, Ray Tune in charge, the winner honestly chosen."""
