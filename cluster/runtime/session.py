"""The connection to Ray: an existing cluster, a submitted job's own, or a private one on this machine.

Token authentication is on for the private one (Ray's own default) and asked for elsewhere, unless the
environment says RAY_AUTH_MODE=disabled. Ends only what it started.
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
    """Connect for the length of a run; a private cluster ends with it."""
    if ray.is_initialized():
        yield
        return
    # Engines that outlive their actor would keep its memory: let Ray end the actor's whole process group.
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "1")
    address = config.address or os.environ.get("RAY_ADDRESS")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, log_to_driver=False)
            _require_authentication(address)
        else:
            _start_private(config.start_deadline_s)
    except (
        Exception
    ) as error:  # ConnectionError, RuntimeError, ValueError, and a bare one where its node did not come up
        raise PlanError(
            f"cannot connect to Ray at {address or 'this machine'}: {error}. With a cluster, check cluster.address or "
            f"RAY_ADDRESS, and that RAY_AUTH_MODE=token and the token are the same on both sides"
        ) from error
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler aborts the process without tidying up
        yield
    finally:
        ray.shutdown()


def _start_private(deadline_s: float) -> None:
    """A cluster on this machine. Ray gives its own node 30 s to come up, which a busy machine may exceed: try again."""
    start = time.monotonic()
    while True:
        try:
            ray.init(address="local", include_dashboard=False, log_to_driver=False)
            return
        except Exception as error:  # Ray raises a bare one
            ray.shutdown()
            if "timed out during startup" not in str(error) or time.monotonic() - start > deadline_s:
                raise


def _require_authentication(address: str) -> None:
    """Anyone who reaches a cluster without it can run code on it, so that has to be chosen by name."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() not in ("token", "disabled"):
        ray.shutdown()
        raise PlanError(
            f"the Ray cluster at {address} works without token authentication. Start it with RAY_AUTH_MODE=token, "
            f"or set RAY_AUTH_MODE=disabled here if its network is closed"
        )
