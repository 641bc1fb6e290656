"""From anatomy to leadfield: template and subject heads, noise covariance, whitener."""
