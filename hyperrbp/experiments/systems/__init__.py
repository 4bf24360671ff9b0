"""The paper's two systems with a convergent part: network, examples and measures, one file each."""
