"""Labelled images: in folders and shards of anybody, and known sets as their authors have them."""
