"""One module for each family; the module's name is the family's. `app.definitions.family` says what is in one."""
