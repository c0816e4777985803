"""The whole job: schema, loading, defaults.

E
"""
