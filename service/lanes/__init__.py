"""What waits, and what computes: queue, batches, lanes and how they are."""
