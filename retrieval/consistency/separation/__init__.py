"""Separation of the classes: score histograms, confused classes and suspect labels."""
