"""Renders of furniture in rooms, with exact depth and normals."""
