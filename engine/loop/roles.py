"""The interfaces of the roles, as the loop uses them.

Three protocols describe a scorer, a generator and a learner. The classes in actors/ and the fakes of the tests
implement them; mypy checks both. The loop calls a role through its pool and passes the method itself:

    roles.generator.submit(Generator.generate, prompts, iteration=t)

so mypy checks the arguments and the result, and "go to definition" finds the method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

import pyarrow as pa

from engine.config.run import RoleName
from engine.store.reader import Policy

P = ParamSpec("P")
T = TypeVar("T")
Role_co = TypeVar("Role_co", covariant=True)
TokenIds = list[list[int]]
"""[B][tokens]"""
TokenLogps = list[list[float]]
"""[B][tokens] nats"""


class Scorer(Protocol):
    """Compares the answers of each prompt."""

    def identify(self) -> str:
        """Load what scoring needs, and return the id that is stored with the scores."""

    def score(self, completions: pa.Table) -> pa.Table:
        """Return SCORES for COMPLETIONS. Raises RoleError, naming the prompts, for answers that cannot be scored."""

    def sleep(self) -> None:
        """Free the memory. The role loads again with the next call."""


class Judge(Scorer, Protocol):
    """A scorer that asks a language model, and so can be asked anything."""

    def ask(self, questions: pa.Table) -> pa.Table:
        """Return REPLIES to QUESTIONS. A question without a reply is marked, not an error.

        Raises RoleError where the model cannot be asked at all.
        """


class Generator(Scorer, Protocol):
    """Answers prompts with the policy. Also scores answers where the policy is its own judge."""

    def deliver(
        self,
        folder: str,
        digest: str,
        prompt_token_ids: TokenIds,
        completion_token_ids: TokenIds,
        learner_logps: TokenLogps,
        base: str | None = None,
    ) -> float:
        """Serve the weights in `folder`, an adapter of `base` or a whole model, and check them on the probe batch.

        Returns the mean |difference| to the learner's log-probabilities, in nats per token. Raises WeightsError where
        it is too large, or if the digest of the folder is not `digest`. Without `learner_logps` the result is 0.
        """

    def generate(
        self,
        prompts: pa.Table,
        iteration: int,
        num_samples: int | None = None,
        temperature: float | None = None,
        purpose: str = "sample",
        max_new_tokens: int | None = None,
    ) -> pa.Table:
        """Return COMPLETIONS for PROMPTS, with the digest of the weights. `purpose` enters the seeds.

        num_samples, temperature: None: those of the sampling section. max_new_tokens: given, the answers are sampled
        from the whole distribution (no top_p or top_k), and prompts may have any length that leaves room for them.
        """

    def respond(self, requests: pa.Table) -> pa.Table:
        """Return RESPONSES to REQUESTS of a benchmark: how likely given continuations are, or written ones."""

    def answer_logps(self, completions: pa.Table) -> list[list[float]]:
        """Return [rows][K] nats, summed over tokens, of the answers in COMPLETIONS under the served weights."""


class Learner(Protocol):
    """One rank of the training group. All ranks get every call; each returns the same value."""

    def open(self, policy_folder: str, base: str | None = None, version: int = 0) -> None:
        """Load a version of the policy with a fresh optimizer."""

    def token_logps(self, prompt_token_ids: TokenIds, completion_token_ids: TokenIds) -> TokenLogps:
        """Return the log-probability of every token of a few answers under the opened policy."""

    def ref_logps(self, rows: pa.Table) -> list[list[float]]:
        """Return [rows][n] nats, summed over tokens, for a shard of SELECTED under the policy as opened."""

    def begin(self, shards: list[pa.Table], iteration: int) -> dict[str, int]:
        """Take the iteration's rows, one REF_LOGPS table per shard; return num_rows, num_steps and more."""

    def advance(self, until: int) -> list[dict[str, float]]:
        """Run optimizer steps until `until` steps of the iteration are done; return the metrics of each step."""

    def validate(self, rows: pa.Table, step: int) -> pa.Table:
        """Advance to `step`; return VALIDATION for a shard of held-out REF_LOGPS, which do not train."""

    def save_checkpoint(self, folder: str, step: int) -> None:
        """Advance to `step`, then write weights, optimizer and step counter."""

    def load_checkpoint(self, folder: str) -> int:
        """Continue from a checkpoint; return the number of finished steps."""

    def save_weights(
        self, folder: str, step: int, prompt_token_ids: TokenIds, completion_token_ids: TokenIds
    ) -> TokenLogps:
        """Advance to `step`, write the policy to `folder`, and return its `token_logps`."""

    def sleep(self) -> None:
        """Free the memory. `open` loads the policy again."""


REPLAYED: dict[RoleName, tuple[Callable[..., Any], ...]] = {
    "generator": (Generator.deliver, Generator.identify),
    "scorer": (Scorer.identify,),
    "evaluator": (Scorer.identify,),
    "annotator": (Scorer.identify,),
    "learner": (Learner.open, Learner.begin, Learner.load_checkpoint),
}
"""The calls that are replayed to the replacement of a dead replica, in this order, to restore its state.

A pool keeps the last broadcast call of each of these methods. A new call drops the kept calls of the methods that come
later in the list: after `open`, the rows and the checkpoint of the version before no longer apply.
"""


@dataclass(frozen=True)
class Timed(Generic[T]):
    """The result of a call, and the interval on the driver's monotonic clock in which a replica worked on it."""

    value: T
    start: float
    end: float


class Pool(Protocol[Role_co]):
    """Replicas of one role. An idle replica takes the next call; a dead one is replaced and its call is tried again.

    The learner group has the same interface: a call goes to every rank, and the result is that of rank 0.
    """

    @property
    def capacity(self) -> int:
        """Number of calls to submit at a time: enough that no replica is idle, few enough to bound memory."""

    def submit(
        self, method: Callable[Concatenate[Role_co, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[Timed[T]]:
        """Queue a call. The future raises the role's own error, or RoleError when the retries are used up."""

    def broadcast(self, method: Callable[Concatenate[Role_co, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """Call every replica now, and replay the call to replacements (see REPLAYED). One result per replica."""

    def replay(self, method: Callable[Concatenate[Role_co, P], T], *args: P.args, **kwargs: P.kwargs) -> None:
        """Replay this call to replacements from now on, without making it."""


class Roles(Protocol):
    """All pools of a run, and which weights each has loaded."""

    @property
    def generator(self) -> Pool[Generator]: ...
    @property
    def scorer(self) -> Pool[Scorer]:
        """The training scorer: the generators where the policy is its own judge."""

    @property
    def evaluator(self) -> Pool[Scorer]:
        """The scorer of held-out answers; the training scorer where the config names no other."""

    @property
    def annotator(self) -> Pool[Scorer]:
        """The scorer of the answers to benchmarks; the evaluator where the config names no other."""

    @property
    def learner(self) -> Pool[Learner]: ...

    def capacity(self, role: RoleName) -> int:
        """The capacity of a role's pool."""

    @property
    def colocated(self) -> bool:
        """Whether the roles share their machines, so that only one of them holds memory at a time."""

    def prepare(self, policies: Mapping[RoleName, Policy | None]) -> None:
        """Load each role's policy; colocated roles that are not named free their memory.

        Raises WeightsError if a generator fails the check that it serves exactly these weights.
        """

    def invalidate(self, role: RoleName) -> None:
        """Mark the role's weights as changed since they were loaded: the next `prepare` delivers them again."""
