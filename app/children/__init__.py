"""Child processes in which uploads are read: a warm process forks one for each piece of work, under limits."""
