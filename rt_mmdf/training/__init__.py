"""Training of networks; its loop needs torch, numpy and safetensors alone."""
