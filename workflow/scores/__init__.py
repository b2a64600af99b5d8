"""Score estimators: grad log p of the stationary density, on data."""
