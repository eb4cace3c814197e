"""Training methods: what one step computes from a batch."""
