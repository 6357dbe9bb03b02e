"""Nothing that scripts use."""
