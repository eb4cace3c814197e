"""Dense heads for a package, trained on its frozen patch embeddings."""
