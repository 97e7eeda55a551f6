"""What a run is: types, the run loop, its record and its report."""
