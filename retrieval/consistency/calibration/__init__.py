"""Calibrators turn a score into the probability of a match; held-out classes decide which kind is used."""
