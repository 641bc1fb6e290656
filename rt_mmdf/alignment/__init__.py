"""From two clocks to one grid."""
