"""One rank of a learner group under test: a process that reads calls as JSON lines on stdin and answers on stdout.

Started by test_learner.py. Tables travel as paths of Arrow files, nothing is pickled.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import pyarrow as pa

from actors.learner import learner
from engine.algorithms import ALGORITHMS
from engine.config.run import LearnerConfig, ModelConfig
from engine.errors import KumiteError


def partition_everything(settings: dict) -> dict:
    """Let ZeRO-3 partition the tiny test model too, whose parameters all lie below its threshold."""
    if settings["zero_optimization"]["stage"] == 3:
        settings["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
    return settings


def argument(value: object) -> object:
    if isinstance(value, dict) and "table" in value:
        with pa.memory_map(value["table"]) as source:
            return pa.ipc.open_file(source).read_all()
    return [argument(item) for item in value] if isinstance(value, list) else value


def serve(rank: int, world_size: int, answers) -> None:
    original = learner.deepspeed_config
    learner.deepspeed_config = lambda *arguments: partition_everything(original(*arguments))
    current = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["call"] == "new":
                if current is not None:
                    current.sleep()
                config = LearnerConfig(**request["config"])
                model = ModelConfig(**request["model"])
                algorithm = ALGORITHMS[request["algorithm"].get("name", "sppo")](**request["algorithm"])
                current = learner.Learner(config, model, algorithm, rank, world_size, seed=11)
                reply = {"value": None}
            else:
                method = getattr(current, request["call"])
                value = method(*[argument(value) for value in request["arguments"]])
                reply = {"value": value.to_pylist() if isinstance(value, pa.Table) else value}
        except KumiteError as error:
            reply = {"error": type(error).__name__, "message": str(error)}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
    current.close()


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # DeepSpeed talks on stdout
    serve(int(sys.argv[1]), int(sys.argv[2]), channel)
