"""The training: the step, its data, what it writes and how it resumes."""
