"""Error rates of classes and of groups at one threshold, and how far they are apart."""
