"""This toolkit beside its peers: `run.py` is the command."""
