"""What a run trains on, behind one seam: scenes drawn on the fly, or images from disk."""
