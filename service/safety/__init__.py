"""Who may call, how, and how much they may take."""
