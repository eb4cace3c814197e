"""Parses PromQL expressions and queries a running Prometheus."""

from collections.abc import Sequence
from typing import Any

import httpx
import promql_parser

LIMIT_S = 60.0


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """Return every series selector of an expression.

    Raises:
        ValueError: The expression is not PromQL.
    """
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return list({selector.prettify(): selector for selector in found}.values())


def metric_names(expression: str) -> set[str]:
    """Names of the series that an expression reads."""
    return {selector.name for selector in selectors(expression) if selector.name is not None}


class Querier:
    """Asks one Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expression: str) -> list[Any]:
        """The samples of an instant query; a range's value counts as one.

        Raises:
            AssertionError: Prometheus rejects the query.
        """
        return self._ask("query", query=expression)["result"]  # type: ignore[no-any-return]

    def alerts(self) -> list[dict[str, str]]:
        """Labels of all firing and pending alerts."""
        return [alert["labels"] for alert in self._ask("alerts")["alerts"]]

    def rules(self) -> Sequence[Any]:
        """Every loaded rule, with its health."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def _ask(self, path: str, **fields: str) -> Any:
        url = f"{self._url}/api/v1/{path}"
        answer = (
            httpx.post(url, data=fields, timeout=LIMIT_S)
            if fields
            else httpx.get(url, timeout=LIMIT_S)
        ).json()
        assert answer["status"] == "success", (fields, answer)
        return answer["data"]
