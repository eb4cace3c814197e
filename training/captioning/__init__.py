"""Captioning jobs: shards of captioned images in, the same shards with one more caption out."""
