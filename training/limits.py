"""Limits that evaluations and experiments share: bands of FAR, and how many pairs make a FAR measurable."""

PAPER_BAND = (1e-2, 1e-1)  # pooled FARs over which the paper of TCM integrates OPIS
HALF_A_DECADE = 10**0.5  # factor on either side of a deployed FAR
MIN_FALSE_ACCEPTS = 10  # expected at a FAR that can be measured
