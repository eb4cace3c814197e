"""Images with captions on disk: WebDataset shards, their builder, and batches made from them."""
