"""Numbers to colours and to PNG files: what masks and maps share."""
