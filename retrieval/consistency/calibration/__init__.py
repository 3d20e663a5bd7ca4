"""Score -> probability of a match, by the kind of calibrator that held-out classes favour."""
