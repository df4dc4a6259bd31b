"""The policy in the learner: loading, log-probabilities of answers from token ids, writing a model folder.

Loads any causal language model of transformers from a folder with safetensors weights. The token ids are those of the
generator: nothing is tokenized again, no BOS or EOS is added.

Log-probabilities are computed without [batch, length, vocabulary] logits. With a vocabulary of 128 k the logits of one
512-token pair need half a GiB in float32, and their gradient the same again. Here only `chunk` positions have logits at
one time; the backward pass computes them again.
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
"""Nats per token by which PolicyModule's log-probabilities may differ from those of the model's own logits."""


class ChunkedHead(nn.Module):
    """The language-model head, applied to `chunk` positions at a time.

    Holds the head's weight as its own parameter, so that ZeRO-3 gathers it once for all chunks of a pass. The model's
    own head would be gathered once per chunk: slow, and a deadlock when two ranks have different numbers of tokens.
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
    """Arguments of PolicyModule.forward for all answers of `rows` (engine.schema.SELECTED), in order.

    [] gives tokens without labels: a pass without results, in which the rank takes part. Raises DataError for a row
    without prompt tokens, since there would be no position that predicts the answer's first token.
    """
    bad = [row["prompt_id"] for row in rows if not row["prompt_token_ids"]]
    if bad:
        raise DataError(f"prompts {bad} have no tokens; expected at least one, e.g. BOS from the chat template")
    pairs = [(row["prompt_token_ids"], answer) for row in rows for answer in row["completion_token_ids"]] or [([0], [])]
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

    With quantize = "nf4" its linear layers have 4 bits per weight, on this process's GPU.
    Raises ModelError if the folder lacks safetensors or some of the weights, or if the architecture computes logits
    from hidden states in a way that PolicyModule does not reproduce.
    """
    model = load_model(config, Path(folder), quantize)
    _switch_off_dropout(model)
    policy = PolicyModule(model, logits_chunk)
    check_logprobs(policy)
    # After the check, because flash attention cannot run on the CPU.
    if config.attn_implementation is not None:
        model.set_attn_implementation(config.attn_implementation)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return policy.train()


def load_model(config: ModelConfig, folder: Path, quantize: str | None = None) -> PreTrainedModel:
    """Load the transformers model in `folder`. Raises ModelError if the folder or some of the weights are missing."""
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
            f"{folder} lacks weights, which would be random: {sorted(report['missing_keys'])}; "
            "expected every parameter of the architecture in its safetensors files"
        )
    return model


def _in_four_bits(config: ModelConfig, quantize: str | None) -> dict[str, Any]:
    """Arguments of from_pretrained that quantize the linear layers to NF4 (QLoRA, arXiv 2305.14314, section 3)."""
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
    """Set every dropout rate to 0: training and reference must be equal before the first update."""
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
    """Raise ModelError unless the log-probabilities of random ids equal those of the model's own logits.

    They differ if a model scales or masks its logits after the head (Cohere, Granite).
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
            f"{type(model).__name__} post-processes its logits in a way that Kumite does not support: "
            f"log-probabilities differ by {difference:.3g} nats per token; use another architecture or extend "
            f"actors/learner/policy.py"
        )


IGNORE = -100
"""Label of a position that is not part of an answer (prompt or padding)."""


def token_logps(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], chunk: int, softcap: float | None = None
) -> Tensor:
    """[T] float32 log-probabilities, in nats, of `targets` [T] given the `hidden` [T, width] that predict them.

    head: maps [t, width] to [t, vocabulary]; softmax and everything after it is computed in float32. softcap: c
    changes logits to c * tanh(logits / c) (Gemma 2, arXiv 2408.00118).
    """

    def chunk_logps(states: Tensor, ids: Tensor) -> Tensor:
        logits = head(states).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return -functional.cross_entropy(logits, ids, reduction="none")

    # T = 0 still gives one empty chunk: the head stays in the graph, and its gradient is 0 instead of missing.
    chunks = []
    for start in range(0, max(1, len(targets)), chunk):
        states, ids = hidden[start : start + chunk], targets[start : start + chunk]
        if torch.is_grad_enabled():
            chunks.append(checkpoint(chunk_logps, states, ids, use_reentrant=False, preserve_rng_state=False))
        else:
            chunks.append(chunk_logps(states, ids))
    return torch.cat(chunks)


def answer_token_logps(
    hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], chunk: int, softcap: float | None = None
) -> Tensor:
    """[N, L - 1] float32: entry t is the log-probability of the token at position t + 1; 0 outside answers.

    hidden: [N, L, width], the decoder's last hidden states. labels: [N, L], the token id at every position of an
    answer, IGNORE elsewhere. The shift by one is here and nowhere else: the state at position t predicts token t + 1.
    """
    labels = labels[:, 1:]
    inside = labels != IGNORE
    values = token_logps(hidden[:, :-1][inside], labels[inside], head, chunk, softcap)
    # masked_scatter, not index_add: on a GPU the latter sums in another order in every run.
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
    """{transformers' name: tensor} of all weights, on the CPU; {} where `keep` is false. Called by all ranks.

    Under ZeRO-3 a rank gathers one tensor at a time. Tied weights share one copy, so that transformers recognises
    them and writes them once.
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
    """A copy on the CPU, gathered from all ranks under ZeRO-3; None if `keep` is false. Called by all ranks."""
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
    # Published generation configs often fail transformers' validation when saved; the source's file is copied instead.
    model.generation_config = GenerationConfig()
    model.save_pretrained(target, state_dict=state)
    (target / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    copy_companions(source, target)


def copy_companions(source: Path, target: Path) -> None:
    """Copy the COMPANIONS of a model's folder."""
    for path in {match for pattern in COMPANIONS for match in source.glob(pattern)}:
        if path.is_dir():
            shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target / path.name)
