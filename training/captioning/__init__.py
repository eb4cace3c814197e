"""Captioning jobs: shards of captioned pictures in, the same shards with one more caption out."""
