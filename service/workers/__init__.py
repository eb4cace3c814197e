"""Several processes of one server: the supervisor, and what each process gets."""
