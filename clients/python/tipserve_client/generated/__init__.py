"""Code generated from proto/ by proto/generate.sh. Never edited by hand."""
