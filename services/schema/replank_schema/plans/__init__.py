"""Migration plans: registering them, and gathering what must be there before one may start."""
