"""The rules of the diagnosis, one family a file; each takes the evidence and returns a finding or None."""
