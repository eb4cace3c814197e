"""Computed results turned into what clients read: masks, contours, features, maps, vectors."""
