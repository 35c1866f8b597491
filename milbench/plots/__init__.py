"""The look of figures, and how they are saved with their numbers."""
