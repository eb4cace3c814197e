"""Fixtures that the readers' tests share with those of the tasks that score what is read."""

from tests.tipserve_cli.conftest import answers, scripted, write  # noqa: F401 - fixtures
