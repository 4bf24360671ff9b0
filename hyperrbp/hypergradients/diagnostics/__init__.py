"""What can be measured about a hypergradient: each question one file, each answer plain numbers."""
