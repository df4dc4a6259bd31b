"""The policy in the learner: loading, log-probabilities of answers from token ids, writing a model folder.

Loads any causal language model of transformers from a folder with safetensors weights. Reads the ids
that the generator made, as they are: nothing is tokenized again, no BOS or EOS is added.

Log-probabilities are computed without [batch, length, vocabulary] logits. With a vocabulary of 128 k the logits of
one 512-token pair fill half a GiB in float32, and their gradient as much again. Here only `chunk` positions have
logits at one time, in the backward pass too, where they are computed again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from actors.learner.deepspeed import device
from engine.config.run import ModelConfig
from engine.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Nats per token by which our log-probabilities may differ from those of the model's own logits."""


class ChunkedHead(nn.Module):
    """The language-model head, applied to some positions at a time.

    Holds the head's weight as its own parameter, so that ZeRO-3 gathers it once for all chunks of a
    pass. Through the model's own head it would be gathered once per chunk, by each rank as often as
    it has chunks: slow, and a deadlock as soon as two ranks differ in the number of their tokens.
    """

    def __init__(self, linear: nn.Linear, chunk: int, softcap: float | None):
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.chunk = chunk
        self.softcap = softcap

    def forward(self, hidden: Tensor, labels: Tensor, per_token: bool) -> Tensor:
        """hidden: [N, L, width]; labels: [N, L]; per_token: [N, L - 1] float32, else sums [N] float64."""
        function = answer_token_logps if per_token else summed_logprobs
        return function(hidden, labels, self._project, self.chunk, self.softcap)

    def _project(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.weight, self.bias)


class PolicyModule(nn.Module):
    """Wraps a causal language model; forward gives log-probabilities instead of logits."""

    def __init__(self, model: PreTrainedModel, logits_chunk: int):
        super().__init__()
        self.model = model
        linear = model.get_output_embeddings()
        if not isinstance(linear, nn.Linear) or model.base_model is model:
            raise ModelError(
                f"{type(model).__name__}: expected a decoder with a linear language-model head, found "
                f"{type(linear).__name__}; use a causal language model of transformers"
            )
        softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self.head = ChunkedHead(linear, logits_chunk, softcap)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, per_token: bool = False) -> Tensor:
        """[N] float64, nats summed over each answer; per_token: [N, L - 1] float32, entry t for token t + 1.

        input_ids: [N, L], prompt and answer, padded on the right. attention_mask: [N, L], 1 on tokens.
        labels: [N, L], the ids of the answer's tokens, IGNORE elsewhere.
        """
        output = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return self.head(output.last_hidden_state, labels, per_token)


def collate(rows: list[dict], target: torch.device) -> dict[str, Tensor]:
    """Arguments of PolicyModule.forward for all answers of `rows` (engine.schema.ROWS), in order.

    No rows at all give one token without a label: a pass that computes nothing but takes part. Raises
    DataError for a row without prompt tokens, since nothing would predict the answer's first token.
    """
    bad = [row["prompt_id"] for row in rows if not row["prompt_token_ids"]]
    if bad:
        raise DataError(f"prompts {bad} have no tokens; a prompt needs at least one, e.g. BOS from the chat template")
    pairs = [(row["prompt_token_ids"], answer) for row in rows for answer in row["answer_token_ids"]] or [([0], [])]
    length = max(2, *(len(prompt) + len(answer) for prompt, answer in pairs))
    input_ids = torch.zeros(len(pairs), length, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORE)
    for i, (prompt, answer) in enumerate(pairs):
        stop = len(prompt) + len(answer)
        input_ids[i, :stop] = torch.tensor([*prompt, *answer])
        attention_mask[i, :stop] = 1
        labels[i, len(prompt) : stop] = input_ids[i, len(prompt) : stop]
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    return {name: tensor.to(target) for name, tensor in batch.items()}


def load_policy(
    config: ModelConfig,
    folder: str | Path,
    logits_chunk: int,
    gradient_checkpointing: bool = False,
    quantize: str | None = None,
) -> PolicyModule:
    """Load the policy in `folder` for training: config.dtype, no dropout, no cache, on the CPU.

    With quantize = "nf4" its linear layers are held in 4 bits, on this process's GPU.
    Raises ModelError where the folder lacks safetensors or some of the weights, or where the
    architecture turns hidden states into logits in a way that PolicyModule does not reproduce.
    """
    model = load_model(config, Path(folder), quantize)
    _switch_off_dropout(model)
    policy = PolicyModule(model, logits_chunk)
    check_logprobs(policy)
    # Only now, because flash attention cannot run the check on the CPU.
    if config.attn_implementation is not None:
        model.set_attn_implementation(config.attn_implementation)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return policy.train()


def load_model(config: ModelConfig, folder: Path, quantize: str | None = None) -> PreTrainedModel:
    """The model as transformers knows it. Raises ModelError where `load_policy` does."""
    from transformers import AutoModelForCausalLM

    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; expected one with config.json and safetensors weights")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=getattr(torch, config.dtype),
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            **_in_four_bits(config, quantize),
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ModelError(f"cannot load the policy from {folder}: {error}") from error
    model, report = loaded
    if report["missing_keys"]:
        raise ModelError(
            f"{folder} lacks weights, which would stay random: {sorted(report['missing_keys'])}; "
            "expected every parameter of the architecture in its safetensors files"
        )
    return model


def _in_four_bits(config: ModelConfig, quantize: str | None) -> dict[str, Any]:
    """Arguments that round the linear layers to NF4 as they are read (QLoRA, arXiv 2305.14314, section 3)."""
    if quantize is None:
        return {}
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantize,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, config.dtype),
    )
    return {"quantization_config": settings, "device_map": {"": device()}}


def _switch_off_dropout(model: PreTrainedModel) -> None:
    """Dropout would make training and reference log-probabilities differ before the first update."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    for section in (model.config, model.config.get_text_config()):
        for name, value in vars(section).items():
            if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
                setattr(section, name, 0.0)


@torch.no_grad()
def check_logprobs(policy: PolicyModule) -> None:
    """Raise ModelError unless our log-probabilities equal those of the model's own logits on some random ids.

    They would not where a model scales or masks its logits behind the head (Cohere, Granite).
    """
    model = policy.model
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(policy.head.weight.shape[0], (1, 16), generator=generator).to(policy.head.weight.device)
    labels = ids.clone()
    labels[:, 0] = IGNORE
    ours = policy(ids, torch.ones_like(ids), labels, per_token=True)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    theirs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    difference = (ours - theirs).abs().max().item()
    if not difference <= TOLERANCE[policy.head.weight.dtype]:
        raise ModelError(
            f"{type(model).__name__} post-processes its logits in a way Kumite does not know: log-probabilities "
            f"differ by {difference:.3g} nats per token; use another architecture or extend actors/learner/policy.py"
        )


IGNORE = -100
"""Label of a position that is not part of an answer (prompt or padding)."""


def token_logps(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], chunk: int, softcap: float | None = None
) -> Tensor:
    """[T] float32 log-probabilities, in nats, of `targets` [T] given the `hidden` [T, width] that predict them.

    `head` maps [t, width] to [t, vocabulary]; softmax and what follows are float32 whatever it
    computes in. `softcap` c bends logits to c * tanh(logits / c) (Gemma 2, arXiv 2408.00118).
    """

    def piece(states: Tensor, wanted: Tensor) -> Tensor:
        logits = head(states).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return -functional.cross_entropy(logits, wanted, reduction="none")

    # T = 0 still makes one (empty) piece: the head stays in the graph, and its gradient is 0, not missing.
    pieces = []
    for start in range(0, max(1, len(targets)), chunk):
        states, wanted = hidden[start : start + chunk], targets[start : start + chunk]
        if torch.is_grad_enabled():
            pieces.append(checkpoint(piece, states, wanted, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(piece(states, wanted))
    return torch.cat(pieces)


def answer_token_logps(
    hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], chunk: int, softcap: float | None = None
) -> Tensor:
    """[N, L - 1] float32: entry t is the log-probability of the token at position t + 1; 0 outside answers.

    hidden: [N, L, width], the decoder's last hidden states. labels: [N, L], the token id at every
    position of an answer, IGNORE elsewhere. This is the one place that shifts by one: the state at
    position t predicts the token at t + 1.
    """
    labels = labels[:, 1:]
    inside = labels != IGNORE
    values = token_logps(hidden[:, :-1][inside], labels[inside], head, chunk, softcap)
    # masked_scatter rather than index_add: the latter sums in a different order on every run on a GPU.
    return torch.zeros(labels.shape, dtype=values.dtype, device=values.device).masked_scatter(inside, values)


def summed_logprobs(
    hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], chunk: int, softcap: float | None = None
) -> Tensor:
    """[N] float64 log-probabilities, summed over each answer's tokens; arguments as in answer_token_logps.

    The sum is float64: a log-ratio is a small difference of two sums of some hundred nats.
    """
    return answer_token_logps(hidden, labels, head, chunk, softcap).sum(dim=-1, dtype=torch.float64)


COMPANIONS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates",
    "*.py",
)
"""Files beside weights and config that belong to a model (globs)."""


def gather_weights(policy: PolicyModule, keep: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights by transformers' names, on the CPU; only where `keep` is true. Called by all ranks.

    One tensor at a time is whole in a rank's memory under ZeRO-3. Tied weights share one copy, by which
    transformers recognises them and writes them once.
    """
    state: dict[str, Tensor] = {}
    copies: dict[int, Tensor] = {}
    for name, tensor in policy.model.state_dict(keep_vars=True).items():
        copy = whole(tensor, keep and id(tensor) not in copies, dtype)
        if copy is not None:
            copies[id(tensor)] = copy
        if keep:
            state[name] = copies[id(tensor)]
    return state


def whole(tensor: Tensor, keep: bool, dtype: torch.dtype) -> Tensor | None:
    """A copy on the CPU, gathered from all ranks under ZeRO-3; None where `keep` is false. Called by all ranks."""
    import deepspeed

    partitioned = [tensor] if hasattr(tensor, "ds_id") else []
    with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to("cpu", kind, copy=True) if keep else None


def write_policy(
    model: PreTrainedModel, state: dict[str, Tensor], dtype: torch.dtype, source: Path, target: Path
) -> None:
    """Write `state` and the companions of the `source` folder to the `target` folder."""
    from transformers import GenerationConfig

    target.mkdir(parents=True, exist_ok=True)
    # Published generation configs often fail transformers' own validation on saving; the source's is copied.
    model.generation_config = GenerationConfig()
    model.save_pretrained(target, state_dict=state)
    (target / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    copy_companions(source, target)


def copy_companions(source: Path, target: Path) -> None:
    """Copy what lies beside weights and config in a model's folder and belongs to it."""
    for path in {match for pattern in COMPANIONS for match in source.glob(pattern)}:
        if path.is_dir():
            shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target / path.name)
