"""Between the common grid and the solver: bad channels, filters, decimation, whitening, the sliding window."""
