"""Decodes images in processes of their own, within the time and the memory that there is, fairly among callers.

`lanes.py` is for users. No name is exported here: a decoder process imports this package and must stay small.
"""
