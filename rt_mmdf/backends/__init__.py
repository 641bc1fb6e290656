"""What runs a network for the live chain: torch today, ONNX and TensorRT by the same door."""
