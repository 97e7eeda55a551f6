"""What a run shows: the final table and the plots, drawn from plain data."""
