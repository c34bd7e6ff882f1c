"""Operators of translation on a CPU in C, where torch goes over the same numbers several times."""
