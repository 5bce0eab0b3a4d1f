"""Data: records of a task, their text as tokens, and batches of packed rows. Knows no model."""
