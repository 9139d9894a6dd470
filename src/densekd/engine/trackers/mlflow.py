"""MLflow."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

from densekd.engine.trackers.base import PROJECT, About, flat

PARAMETERS = 100  # of one request, at most
LENGTH = 6000  # characters of a parameter's value, at most
FORBIDDEN = re.compile(r"[^\w\-./ ]")  # in names


class MLflow:
    """One run of MLflow. Its own variables hold: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME."""

    overwrites = False

    def __init__(self, about: About) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient()
        self.last = about.start
        if about.id is not None:
            self.id = about.id
            self.client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self.client.get_experiment_by_name(name)
        experiment = self.client.create_experiment(name) if found is None else found.experiment_id
        self.id = self.client.create_run(experiment, run_name=about.name).info.run_id
        settings = [
            Param(FORBIDDEN.sub("_", key), str(value)[:LENGTH])
            for key, value in flat(about.config).items()
        ]
        for first in range(0, len(settings), PARAMETERS):
            self.client.log_batch(self.id, params=settings[first : first + PARAMETERS])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(FORBIDDEN.sub("_", k), float(v), now, step) for k, v in values.items()]
        for first in range(0, len(metrics), 1000):
            self.client.log_batch(self.id, metrics=metrics[first : first + 1000])
        self.last = max(self.last, step)

    def finish(self, final: Mapping[str, float] | None) -> None:
        self.log(self.last, final or {})
        self.client.set_terminated(self.id, "KILLED" if final is None else "FINISHED")
