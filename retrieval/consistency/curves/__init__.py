"""Operating curves: accepted pairs per class and threshold, of all pairs or of some."""
