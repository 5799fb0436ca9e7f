"""The rules as the object that the Prometheus Operator reads."""

from textwrap import indent

from generator import rules
from generator.options import Options
from generator.rules.model import groups_text


def prometheus_rule(options: Options) -> str:
    """Return one PrometheusRule that holds every alert, and what the alerts read."""
    groups = groups_text((*rules.alerting(options), *rules.serving(options)), options)
    # Which ones they are, only the reader knows.
    hint = "# Your Prometheus selects such objects by their labels (its ruleSelector): add them under metadata.\n"
    head = (
        hint + "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: sqlalchemy-pool\nspec:\n"
    )
    return head + indent(groups, "  ")
