"""Analysis of maps and posteriors: correlation, masks, alignment, scores. It knows no engine."""
