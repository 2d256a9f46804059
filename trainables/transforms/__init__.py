"""What happens to an image before it reaches the network."""
