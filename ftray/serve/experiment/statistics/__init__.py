"""Statistics of experiments that stay valid however often they are looked at.

Each is a state that takes one event at a time, at a cost that does not grow with the units, and goes to JSON and back
without a change; the same events in the same order give the same state to the last bit.
"""
