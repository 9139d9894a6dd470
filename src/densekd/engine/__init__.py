"""The training engine: a visible loop (`trainer`), the step it repeats (`step`), and what they need."""
