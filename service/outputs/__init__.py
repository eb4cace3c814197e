"""Computed results turned into what clients read: masks, polygons, features, maps, vectors."""
