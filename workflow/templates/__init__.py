"""What `gfdt init` writes."""
