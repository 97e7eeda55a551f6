"""What a policy means to a network and what it costs."""
