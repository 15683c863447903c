"""The office: a process that does for the API what would keep reads waiting, with the same database and store."""
