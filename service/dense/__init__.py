"""Maps of depth and of surface normals to files that people and programs look at."""
