"""What joins this node to others (empty so far)."""
