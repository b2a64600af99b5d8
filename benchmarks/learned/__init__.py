"""Parts of the study of learned scores, `benchmarks/learned_scores.py`."""
