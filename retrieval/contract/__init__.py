"""Code that training and serving share: preprocessing, bundles, scores, operating points, manifests."""
