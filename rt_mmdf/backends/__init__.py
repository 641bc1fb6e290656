"""What runs a network for the live chain: torch, ONNX Runtime and TensorRT by one door."""
