"""Many runs side by side: read, compared, tabulated, drawn."""
