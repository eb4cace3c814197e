"""What scores of any task need: ranks, intervals, and rules that judge them."""
