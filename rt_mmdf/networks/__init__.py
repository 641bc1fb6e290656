"""Network definitions: whitened sensors in, source moments out. torch and numpy alone, so that they train anywhere."""
