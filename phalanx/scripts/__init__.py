"""A user's own script as a job: its code, its folders, its environment, its output, its failure, its model."""
