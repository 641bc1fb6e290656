"""What happens to sensors on the grid before they are imaged."""
