"""The connection to Ray: an existing cluster, a submitted job's own, or a private one on this machine.

The private cluster has token authentication (Ray's default). Other clusters must have it too, unless the environment
has RAY_AUTH_MODE=disabled. Only a private cluster is ended afterwards.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from engine.config.run import ClusterConfig
from engine.errors import PlanError


@contextmanager
def ray_session(config: ClusterConfig) -> Iterator[None]:
    """Connect to Ray for a run; a private cluster ends with the run."""
    if ray.is_initialized():
        yield
        return
    # An engine that outlives its actor would keep its memory, so Ray ends the actor's whole process group.
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "1")
    address = config.address or os.environ.get("RAY_ADDRESS")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, log_to_driver=False)
            _require_authentication(address)
        else:
            _start_private(config.start_deadline_s)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError; plain Exception if Ray's node did not start
        raise PlanError(
            f"cannot connect to Ray at {address or 'this machine'}: {error}. With a cluster, check cluster.address or "
            f"RAY_ADDRESS, and that RAY_AUTH_MODE=token and the token are the same on both sides"
        ) from error
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler ends the process without cleaning up
        yield
    finally:
        ray.shutdown()


@contextmanager
def shared_session(config: ClusterConfig) -> Iterator[tuple[dict[str, str], dict[str, float]]]:
    """Connect for several runs in processes of their own, which then need not start a private cluster each.

    Yields the environment with which they find the cluster, and its resources under Ray's names. Both are empty for
    the local backend, which has no cluster.
    """
    if config.backend == "local":
        yield {}, {}
        return
    with ray_session(config):
        address = ray.get_runtime_context().gcs_address
        mode = os.environ.get("RAY_AUTH_MODE") or "token"
        yield {"RAY_ADDRESS": address, "RAY_AUTH_MODE": mode}, dict(ray.cluster_resources())


def _start_private(deadline_s: float) -> None:
    """Start a cluster on this machine. Ray gives its node 30 s, which may be too short on a busy machine: try again."""
    start = time.monotonic()
    while True:
        try:
            ray.init(address="local", include_dashboard=False, log_to_driver=False)
            return
        except Exception as error:  # Ray raises a plain Exception
            ray.shutdown()
            if "timed out during startup" not in str(error) or time.monotonic() - start > deadline_s:
                raise


def _require_authentication(address: str) -> None:
    """Raise PlanError for a cluster without token authentication, on which anyone who reaches it can run code."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() not in ("token", "disabled"):
        ray.shutdown()
        raise PlanError(
            f"the Ray cluster at {address} works without token authentication. Start it with RAY_AUTH_MODE=token, "
            f"or set RAY_AUTH_MODE=disabled here if its network is closed"
        )
