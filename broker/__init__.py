"""The node: what messages mean, where they are kept, how they travel, how it all is run."""
