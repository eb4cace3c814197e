"""Fetches images that requests name by URL, from the hosts that were allowed and no others."""
