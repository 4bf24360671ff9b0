"""What `hyperrbp train` trains: one file each, advanced, saved and resumed bit for bit."""
