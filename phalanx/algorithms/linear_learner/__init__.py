"""Linear learner: many linear models at once."""
