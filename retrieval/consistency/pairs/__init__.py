"""Labelled vectors and their pairs: scores tile by tile, counted by compiled loops on several threads."""
