"""`python docker/grafana/make_dashboard.py`: write dashboards/bar.json, the service at a glance.

A dashboard is a list of panels; Grafana's JSON repeats each one's surroundings forty times. Here a
panel is a title, a unit and its queries. Levels of the queue are the same in every API's metrics,
so they are taken by `max`; what each process counts is summed.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).parent / "dashboards" / "bar.json"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WHERE = 'namespace=~"$namespace",model_name=~"$model_name"'
HEIGHT, COLUMNS = 8, 24


@dataclass(frozen=True)
class Panel:
    """A graph; `queries` are expressions by legend, in which WHERE stands for the chosen models."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    width: int = 8
    text: str = ""
    kind: str = "timeseries"
    is_stacked: bool = False


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


def rate(metric: str, *by: str, where: str = "") -> str:
    """Return how fast a counter grows, summed but for the labels `by`."""
    labels = ", ".join(("model_name", *by))
    return f"sum by ({labels}) (rate({metric}{{WHERE{where}}}[$__rate_interval]))"


def level(metric: str, *by: str, where: str = "") -> str:
    """Return a level of the queue, whichever API was asked."""
    return f"max by ({', '.join(('model_name', *by))}) ({metric}{{WHERE{where}}})"


def quantile(share: float, metric: str, *by: str) -> str:
    """Return what this share of a histogram's observations does not exceed."""
    labels = ", ".join(("model_name", "le", *by))
    buckets = f"sum by ({labels}) (rate({metric}_bucket{{WHERE}}[$__rate_interval]))"
    return f"histogram_quantile({share}, {buckets})"


def quantiles(metric: str) -> dict[str, str]:
    """Return the usual three, by legend."""
    return {
        f"{{{{model_name}}}} p{share * 100:.0f}": quantile(share, metric)
        for share in (0.5, 0.95, 0.99)
    }


ROWS = (
    Row(
        "At a glance",
        (
            Panel("Images a second", {"{{model_name}}": rate("bar_images_generated_total")},
                  kind="stat", width=4),
            Panel("Ready workers", {"{{model_name}}": level("bar_workers", where=',phase="ready"')},
                  kind="stat", width=4),
            Panel("Slots in use", {"{{model_name}}": level("bar_slots_used")
                  + " / " + level("bar_slots")}, "percentunit", kind="stat", width=4),
            Panel("99 % of requests within", {"{{model_name}}":
                  quantile(0.99, "bar_request_seconds")}, "s", kind="stat", width=4),
            Panel("Queue full", {"{{model_name}}": level("bar_queued_steps")
                  + " / " + level("bar_queue_limit_steps")}, "percentunit", kind="stat", width=4),
            Panel("Known image right", {"{{model_name}}":
                  "min by (model_name) (bar_canary_ok{WHERE})"}, "bool_yes_no", kind="stat",
                  width=4),
        ),
    ),
    Row(
        "Requests",
        (
            Panel("Requests a second, by outcome",
                  {"{{model_name}} {{outcome}}": rate("bar_requests_total", "outcome")},
                  "reqps", is_stacked=True),
            Panel("Time of a request", quantiles("bar_request_seconds"), "s"),
            Panel("Refusals a second, by reason",
                  {"{{model_name}} {{reason}}": rate("bar_rejections_total", "reason") + " > 0"},
                  "reqps", text="What did not become a job; the reason is the error's code."),
            Panel("Cancellations a second",
                  {"{{model_name}} {{phase}}, {{cause}}":
                   rate("bar_cancellations_total", "phase", "cause") + " > 0"}, "ops"),
            Panel("Jobs ended a second, by state",
                  {"{{model_name}} {{state}}": "max by (model_name, state) (rate("
                   "bar_jobs_ended_total{WHERE}[$__rate_interval])) > 0"}, "ops"),
            Panel("HTTP requests a second, by status",
                  {"{{status}}": "sum by (status) (rate(http_requests_total"
                   '{namespace=~"$namespace"}[$__rate_interval]))'}, "reqps", is_stacked=True),
        ),
    ),
    Row(
        "Queue",
        (
            Panel("Images waiting and running",
                  {"{{model_name}} waiting": level("bar_images_waiting"),
                   "{{model_name}} running": level("bar_images_running"),
                   "{{model_name}} slots": level("bar_slots")}),
            Panel("Age of the oldest waiting job",
                  {"{{model_name}}": level("bar_oldest_waiting_age_seconds")}, "s"),
            Panel("Wait for a worker", quantiles("bar_queue_seconds"), "s"),
            Panel("Cost that waits, and its bound",
                  {"{{model_name}}": level("bar_queued_steps"),
                   "{{model_name}} bound": level("bar_queue_limit_steps")},
                  text="Images times steps. At the bound requests are refused with 429."),
            Panel("Claims taken back from lost workers, an hour",
                  {"{{model_name}}": "max by (model_name) (increase("
                   "bar_redeliveries_total{WHERE}[1h]))"}),
            Panel("Dead jobs that are kept", {"{{model_name}}": level("bar_dead_letters_kept")},
                  text="`bar queue dead` lists them, `bar queue retry` admits one again."),
        ),
    ),
    Row(
        "Workers",
        (
            Panel("Workers, by phase", {"{{model_name}} {{phase}}": level("bar_workers", "phase")},
                  is_stacked=True),
            Panel("Slots", {"{{model_name}} in use": level("bar_slots_used"),
                            "{{model_name}} all": level("bar_slots")}),
            Panel("Images a second", {"{{model_name}}": rate("bar_images_generated_total")}),
            Panel("Time of a step", quantiles("bar_step_seconds"), "s"),
            Panel("Images in a step, mean",
                  {"{{model_name}}":
                   f"{rate('bar_batch_size_sum')} / {rate('bar_batch_size_count')}",
                   "{{model_name}}, share of the slots":
                   f"{rate('bar_batch_fill_ratio_sum')} / {rate('bar_batch_fill_ratio_count')}"}),
            Panel("Work in flight that does not move",
                  {"{{model_name}}": "max by (model_name) (bar_stalled_seconds{WHERE})"}, "s",
                  text="A worker ends itself beyond BAR_STALL_S."),
        ),
    ),
    Row(
        "Where the time goes",
        (
            Panel("Succeeded jobs, mean of each stage",
                  {"{{model_name}} {{stage}}": f"{rate('bar_stage_seconds_sum', 'stage')} / "
                   f"{rate('bar_stage_seconds_count', 'stage')}"}, "s", is_stacked=True),
            Panel("Time to the first partial image",
                  quantiles("bar_time_to_first_partial_seconds"), "s"),
            Panel("Time of the device that is used",
                  {"{{model_name}}": rate("bar_gpu_seconds_total")},
                  text="Devices' worth of it: 2 is two devices that never rest."),
        ),
    ),
    Row(
        "Devices and processes",
        (
            Panel("Memory of the GPUs",
                  {"{{model_name}} {{kind}}":
                   "sum by (model_name, kind) (bar_gpu_memory_bytes{WHERE})"}, "bytes"),
            Panel("Out of memory, an hour",
                  {"{{model_name}}": "sum by (model_name) (increase("
                   "bar_out_of_memory_total{WHERE}[1h]))"}),
            Panel("Class prefixes that were there",
                  {"{{model_name}}": f"{rate('bar_prefix_cache_hits_total')} / "
                   f"({rate('bar_prefix_cache_hits_total')} + "
                   f"{rate('bar_prefix_cache_misses_total')})"}, "percentunit"),
            Panel("Memory of the processes",
                  {"{{job}} {{instance}}":
                   'process_resident_memory_bytes{namespace=~"$namespace",job=~"bar.*"}'}, "bytes"),
            Panel("Processors used",
                  {"{{job}} {{instance}}": "rate(process_cpu_seconds_total"
                   '{namespace=~"$namespace",job=~"bar.*"}[$__rate_interval])'}),
            Panel("Memory of the Redis server",
                  {"{{model_name}} {{kind}}": level("bar_redis_memory_bytes", "kind")}, "bytes"),
        ),
    ),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    return {
        "uid": "bar-serve",
        "title": "bar-serve",
        "tags": ["bar-serve"],
        "timezone": "browser",
        "refresh": "10s",
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "annotations": {"list": [_alerts()]},
        "panels": list(_panels()),
    }


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 1, 0
    for row in ROWS:
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": row.title, "gridPos": place,
               "collapsed": False, "panels": []}  # fmt: skip
        number, top, left = number + 1, top + 1, 0
        height = HEIGHT // 2 if row.panels[0].kind == "stat" else HEIGHT
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                left, top = 0, top + height
            place = {"x": left, "y": top, "w": panel.width, "h": height}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            number, left = number + 1, left + panel.width
        top += height


def _panel(panel: Panel) -> dict[str, Any]:
    custom = {"fillOpacity": 10, "showPoints": "never"}
    if panel.is_stacked:
        custom |= {"fillOpacity": 40, "stacking": {"mode": "normal", "group": "A"}}
    is_graph = panel.kind == "timeseries"
    return {
        "type": panel.kind,
        "title": panel.title,
        **({"description": panel.text} if panel.text else {}),
        "datasource": DATASOURCE,
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": DATASOURCE, "legendFormat": legend,
             "expr": expression.replace("WHERE", WHERE)}
            for n, (legend, expression) in enumerate(panel.queries.items())
        ],
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, **({"custom": custom} if is_graph else {})},
            "overrides": [],
        },
        "options": (
            {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
            if is_graph
            else {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "value_and_name"}
        ),
    }  # fmt: skip


def _variables() -> list[dict[str, Any]]:
    def labels(name: str, metric: str) -> dict[str, Any]:
        return {
            "name": name, "type": "query", "datasource": DATASOURCE, "refresh": 2,
            "query": {"query": f"label_values({metric}, {name})", "refId": name},
            # Outside Kubernetes there is no such label: `.*` fits that too.
            "includeAll": True, "allValue": ".*", "multi": True,
            "current": {"text": "All", "value": "$__all"},
        }  # fmt: skip

    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    return [source, labels("namespace", "bar_build_info"), labels("model_name", "bar_model_info")]


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts", "enable": True, "iconColor": "red", "datasource": DATASOURCE,
        "expr": 'ALERTS{alertname=~"Bar.*",alertstate="firing",namespace=~"$namespace"}',
        "titleFormat": "{{alertname}}", "tagKeys": "severity,model_name",
    }  # fmt: skip


if __name__ == "__main__":
    OUTPUT.write_text(json.dumps(dashboard(), indent=2) + "\n", "utf-8")
