"""Sources, noise and sensors with known truth."""
