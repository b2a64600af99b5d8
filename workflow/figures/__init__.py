"""Pictures of a run, and the page that holds them."""
