"""What training and serving must do identically: pixels, bundles, scores, operating points, manifests."""
