"""What converges: one file a dynamical system."""
