"""What stands around the brain. Every panel takes plain data and knows neither streams nor threads."""
