"""Time the learner alone: reference log-probabilities, SPPO steps, peak memory, and what it saves.

    python benchmarks/learner.py [--shape 1b] [--prompts 64] [--prompt-tokens 200] [--answer-tokens 400] [--lora 16]

The model is a Llama of a public shape with random weights, the answers are random tokens, and each prompt has two. It
runs on one GPU, or on the CPU. FLOPs per weight and token are 2 forward and 4 backward (2 with LoRA, whose base has no
gradients of weights); attention's products are added, and what is computed twice counts once. MFU is the share of
--peak-tflops, the GPU's rate in --dtype.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from actors.learner.learner import Learner
from actors.tiny_policy import CHAT_TEMPLATE, EXACT, TINY_ROLES, TINY_TOKENS, byte_level_tokenizer, learn_bpe
from engine.algorithms.sppo import SPPO
from engine.config.run import LearnerConfig, ModelConfig
from engine.schema import REF_LOGPS, SELECTED


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes; heads have 64 numbers (`tiny`: 32)."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int

    def flops_per_token(self, context: float) -> float:
        """Of a forward pass, at a mean number of earlier tokens."""
        keys = self.hidden * self.key_value_heads / self.heads
        block = 2 * self.hidden**2 + 2 * self.hidden * keys + 3 * self.hidden * self.intermediate
        return 2 * (self.layers * block + self.hidden * self.vocabulary) + 4 * self.layers * self.hidden * context


SHAPES = {
    "tiny": Shape(128, 256, 2, 4, 4, 512),
    "135m": Shape(576, 1536, 30, 9, 3, 49152),  # SmolLM2-135M
    "1b": Shape(2048, 8192, 16, 32, 8, 128256),  # Llama-3.2-1B
    "3b": Shape(3072, 8192, 28, 24, 8, 128256),  # Llama-3.2-3B, with heads of 128
    "8b": Shape(4096, 14336, 32, 32, 8, 128256),  # Llama-3.1-8B
}


def save_model(folder: Path, shape: Shape, dtype: str) -> None:
    """Write a Llama with random weights, tied as in the small Llamas; it is made on the GPU where there is one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_level_tokenizer(learn_bpe([], 261), TINY_TOKENS, TINY_ROLES, CHAT_TEMPLATE, **EXACT)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        dtype=dtype,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def selected(options: argparse.Namespace, vocabulary: int) -> pa.Table:
    """Rows of one prompt and two answers; lengths differ by a factor of up to 3 around their means."""
    generator = torch.Generator().manual_seed(0)

    def ids(mean: int) -> list[int]:
        length = int(mean * (0.5 + torch.rand(1, generator=generator).item()))
        return torch.randint(300, vocabulary, (length,), generator=generator).tolist()

    rows = [
        {
            "prompt_id": f"p{number}",
            "prompt_token_ids": ids(options.prompt_tokens),
            "completion_index": [0, 1],
            "completion_token_ids": [ids(options.answer_tokens), ids(options.answer_tokens)],
            "win_rate": [0.9, 0.1],
            "baseline": 0.5,
        }
        for number in range(options.prompts)
    ]
    return pa.Table.from_pylist(rows, SELECTED)


class Stopwatch:
    """Wall and CPU seconds of a call, after the GPU has finished."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {}

    def measure(self, name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter(), time.process_time()
        result = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = time.perf_counter() - start[0], time.process_time() - start[1]
        return result


def peak_memory() -> float:
    """GiB: allocated on the GPU, or resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def learner_config(options: argparse.Namespace) -> LearnerConfig:
    values = {
        "cpus": torch.get_num_threads(),
        "gpus": int(torch.cuda.is_available()),
        "zero_stage": options.zero_stage,
        "batch_size": options.batch_size,
        "micro_batch_size": options.micro_batch_size,
        "gradient_checkpointing": options.gradient_checkpointing,
        "lora": {"rank": options.lora, "quantize": options.quantize} if options.lora else None,
        "optimizer": {"lr": 1e-6},
        "schedule": {"warmup_ratio": 0.0},
    }
    return LearnerConfig.model_validate(values)


def measure(options: argparse.Namespace, scratch: Path, table: pa.Table) -> tuple[Stopwatch, dict[str, float]]:
    """Seconds of each part, and what the learner says of its first step, its memory and its saved weights."""
    base, saved = str(scratch / "model"), str(scratch / "saved")
    watch = Stopwatch()
    learner = Learner(learner_config(options), ModelConfig(path=base, dtype=options.dtype), SPPO(), seed=1)
    learner.join(*learner.rendezvous())
    watch.measure("open", lambda: learner.open(base))
    learner.ref_logps(table.slice(0, options.micro_batch_size))  # kernels are loaded at their first use
    logps = watch.measure("ref_logps", lambda: learner.ref_logps(table))
    field = REF_LOGPS.field("ref_logps")
    learner.begin([table.append_column(field, pa.array(logps, field.type))], 0)
    first = watch.measure("first step", lambda: learner.advance(1))[0]
    watch.measure("other steps", lambda: learner.advance(sys.maxsize))
    probe = [[5, 6, 7]], [[8, 9, 10, 11]]
    (before,) = watch.measure("save", lambda: learner.save_weights(saved, 0, *probe))
    memory = peak_memory()
    learner.open(saved, base if options.lora else None)
    (after,) = learner.token_logps(*probe)
    learner.close()
    facts = {
        "log-ratio before the first update, nats": first["log_ratio/max_abs"],
        "loss of the first step": first["loss"],
        "saved against in memory, nats per token": max(abs(a - b) for a, b in zip(before, after, strict=True)),
        "peak memory, GiB": memory,
    }
    return watch, facts


def report(options: argparse.Namespace, table: pa.Table, watch: Stopwatch, facts: dict[str, float]) -> None:
    shape, batch = SHAPES[options.shape], options.batch_size
    lengths = [
        [len(p) + len(a) for a in pair]
        for p, pair in zip(
            table["prompt_token_ids"].to_pylist(), table["completion_token_ids"].to_pylist(), strict=True
        )
    ]
    passes = {"ref_logps": (lengths, 1), "other steps": (lengths[batch:], 2 if options.lora else 3)}
    out = Table("part", "wall, s", "CPU, s", "tokens/s", "TFLOP/s", "MFU", title=f"{options}")
    for name, (wall, cpu) in watch.seconds.items():
        cells = ["", "", ""]
        if name in passes:
            rows, factor = passes[name]
            tokens = [length for pair in rows for length in pair]
            rate = factor * sum(n * shape.flops_per_token(n / 2) for n in tokens) / wall / 1e12
            share = f"{rate / options.peak_tflops:.1%}" if options.peak_tflops else ""
            cells = [f"{sum(tokens) / wall:,.0f}", f"{rate:.3g}", share]
        out.add_row(name, f"{wall:.2f}", f"{cpu:.2f}", *cells)
    console = Console(width=120)
    console.print(out)
    for name, value in facts.items():
        console.print(f"{name}: {value:.6g}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    for name, value in (("prompts", 64), ("prompt-tokens", 200), ("answer-tokens", 400), ("batch-size", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--micro-batch-size", type=int, default=2)
    parser.add_argument("--zero-stage", type=int, default=2)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--lora", type=int, default=0, help="rank of the adapter; 0: all weights are trained")
    parser.add_argument("--quantize", choices=("nf4",))
    parser.add_argument("--peak-tflops", type=float)
    return parser.parse_args()


def main() -> None:
    options = parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        save_model(Path(scratch) / "model", SHAPES[options.shape], options.dtype)
        table = selected(options, SHAPES[options.shape].vocabulary)
        watch, facts = measure(options, Path(scratch), table)
    report(options, table, watch, facts)


if __name__ == "__main__":
    main()
