"""The configuration of published benchmarks, `evaluation.benchmarks`: one section per benchmark."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from engine.config.base import WITHOUT_EFFECT, Arguments, Count, Section


class MTBenchConfig(Section):
    """MT-Bench (arXiv 2306.05685): questions of two turns, judged by an LLM with FastChat's prompts."""

    questions: str
    """File in the form of FastChat's question.jsonl."""
    references: str | None = None
    """File in the form of FastChat's reference_answer/gpt-4.jsonl, for questions on math, reasoning and coding."""
    judge_prompts: str | None = None
    """File in the form of FastChat's judge_prompts.jsonl; null: FastChat's own."""
    mode: Literal["single", "pairwise"] = "single"
    """single: each answer gets a rating from 1 to 10; pairwise: it is compared with the baseline's."""
    baseline: str | None = None
    """pairwise: the other answers, in the form of FastChat's model_answer/<model>.jsonl."""
    questions_per_category: PositiveInt | None = None
    """Use the first questions of each category only, for a trial; null: all."""
    max_new_tokens: PositiveInt = 1024
    """Most tokens of an answer of the policy; 1024 in FastChat."""
    max_prompt_tokens: PositiveInt = 2048
    """Most tokens of a prompt of the policy. A second turn with a longer one is not asked, and counted."""
    judge_max_new_tokens: PositiveInt = 2048
    """Most tokens of a judgment; 2048 in FastChat."""
    judge_system: Literal["system", "user"] = "system"
    """Where the judge prompt's system part goes. user: before the question, for models without a system role, as
    FastChat does for Claude."""

    published: Annotated[str | None, WITHOUT_EFFECT] = None
    """single: ratings of other models, in the form of FastChat's model_judgment/gpt-4_single.jsonl, for the radar."""

    @model_validator(mode="after")
    def _check_files_of_mode(self) -> MTBenchConfig:
        if (self.mode == "pairwise") != (self.baseline is not None):
            raise ValueError(
                f"mode = {self.mode} with baseline = {self.baseline}: pairwise needs a baseline, single none"
            )
        if self.mode == "pairwise" and self.published is not None:
            raise ValueError("published: without effect in mode = pairwise; it holds ratings, as mode = single gives")
        return self


class RewardBenchConfig(Section):
    """RewardBench (arXiv 2403.13787) and RewardBench 2 (2506.01937), which measure the annotator, not the policy."""

    source: str
    """File or hub id with the columns prompt, chosen, rejected (a text, or a list of texts), subset and id."""
    split: str = "test"
    """Split of a data set of the hub: "filtered" in allenai/reward-bench, "test" in allenai/reward-bench-2."""
    items_per_subset: PositiveInt | None = None
    """Use the first items of each subset only, for a trial; null: all."""


class AlpacaEvalConfig(Section):
    """AlpacaEval 2 (arXiv 2404.04475): the policy's answers against a baseline's, judged by the annotator.

    A file may be a path or ORG/NAME/FILE, a file of a data set on the hub.
    """

    instructions: str = "tatsu-lab/alpaca_eval/alpaca_eval_gpt4_baseline.json"
    """File with the columns instruction, dataset, and output or reference_output."""
    baseline: str | None = None
    """File with the baseline's answers, in the form of model_outputs.json; null: those in `instructions`."""
    baseline_name: str | None = None
    """The baseline's name in files; null: the column generator of its file."""
    limit: PositiveInt | None = None
    """Use the first instructions only, for a trial; null: all."""
    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = 0.7
    """Of the policy's answers, one per instruction; 0: greedy."""
    max_new_tokens: PositiveInt = 2048
    """Most tokens of an answer; a longer one is cut, and counted."""
    max_prompt_tokens: PositiveInt = 2048
    """Most tokens of an instruction with the chat template; a longer one is an error."""
    length_controlled: Literal["official", "local", "none"] = "official"
    """official: AlpacaEval's formula, from `gamed`; local: another formula under another name, from `known`."""
    gamed: str = "tatsu-lab/alpaca_eval/df_gamed.csv"
    """official: file with the annotations of gamed baselines and the difficulty of each instruction."""
    instruction_difficulty: str | None = None
    """official: file with the difficulty of each instruction (instruction_difficulty.csv); null: those in `gamed`."""
    known: str | None = None
    """local: annotations of other models against the same baseline, as annotations.json: a file, or a folder with one
    such file per model, such as alpaca_eval's results/."""
    weights: str | None = None
    """official: file with the published weights of other models, for win rates against `opponents`; null: none."""
    opponents: tuple[str, ...] = ()
    """Models in `weights` over which the length-controlled win rate is computed too."""

    @model_validator(mode="after")
    def _check_length_control(self) -> AlpacaEvalConfig:
        if (self.length_controlled == "local") != (self.known is not None):
            raise ValueError(
                f"length_controlled = {self.length_controlled} with known = {self.known}: local needs annotations of "
                f"known models, the other choices do not use them"
            )
        if bool(self.opponents) != (self.weights is not None) or (
            self.opponents and self.length_controlled != "official"
        ):
            raise ValueError("weights and opponents go together, and with length_controlled = official")
        return self


class SideBySideConfig(Section):
    """The answers of policies to the same instructions, beside each other, for people to read."""

    prompts: str
    """File of objects or hub id with the instructions, as text. Where each row has an answer in output or
    reference_output, scores compare with it."""
    column: str | None = None
    """Column with the instruction; null: the first of instruction, prompt, question that a row has."""
    limit: PositiveInt | None = 50
    """Use the first instructions only; null: all."""
    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = 0.7
    """Of the policy's answers, one per instruction; 0: greedy."""
    max_new_tokens: PositiveInt = 1024
    """Most tokens of an answer; a longer one is cut, and counted."""
    max_prompt_tokens: PositiveInt = 2048
    """Most tokens of an instruction with the chat template; a longer one is an error."""


class IFEvalConfig(Section):
    """IFEval (arXiv 2311.07911): instructions that a program can check, by the harness's checkers (extra `harness`)."""

    prompts: str
    """File or hub data set with `prompt`, `instruction_id_list` and `kwargs`, as google/IFEval's input_data.jsonl."""
    limit: PositiveInt | None = None
    """Use the first prompts only, for a trial; null: all."""
    max_new_tokens: PositiveInt = 1280
    """Most tokens of an answer; 1280 in the harness."""
    max_prompt_tokens: PositiveInt = 2048
    """Most tokens of a prompt; longer ones are an error."""


class HarnessConfig(Section):
    """Tasks of EleutherAI's lm-evaluation-harness, which computes the numbers (extra `harness`)."""

    preset: Literal["open_llm_leaderboard", "open_llm_leaderboard_2"] | None = None
    """A published table. open_llm_leaderboard: version 1, as on the cards of SPPO's models; tasks of a preset without
    data are reported as not measured. null: only `tasks`."""
    tasks: list[str | Arguments] = Field(default_factory=list)
    """More tasks: a name of the harness's task or group, a task file, or {task: name, ...} with keys of the harness's
    task files, as {task: arc_easy, num_fewshot: 5}."""
    num_fewshot: Count | None = None
    """Examples in each prompt; null: as each task says. A task's own 0 stays 0."""
    limit: PositiveInt | None = None
    """Use the first documents of each task only, for a trial; null: all."""
    include_path: str | None = None
    """Folder with task files of yours; null: none."""
    data: dict[str, str | dict[str, str]] = Field(default_factory=dict)
    """Files in place of data sets on the hub, by name of the task or group: {arc_challenge: {test: arc.parquet,
    validation: dev.parquet}}, or one file of the split `test`. Tasks of a group share its files; a row is for the task
    whose dataset_name is in the column `subject`."""
    max_length: PositiveInt = 4000
    """Most tokens that the policy reads. A longer context is cut on the left and counted. Two more must fit the
    model."""
    apply_chat_template: bool = False
    """Ask as a chat, by the policy's template."""
    fewshot_as_multiturn: bool = True
    """With apply_chat_template: examples are earlier turns; false: they stand in one message."""
    system_instruction: str | None = None
    """Text before every prompt, the system message of a chat; null: none."""
    log_samples: bool = False
    """Write a file with every document, its answers and metrics for each task."""

    def files(self, task: str) -> dict[str, str]:
        """{split: path} of the files of a task; empty: its data set on the hub."""
        files = self.data.get(task, {})
        return {"test": files} if isinstance(files, str) else files

    @model_validator(mode="after")
    def _check_tasks(self) -> HarnessConfig:
        if not self.preset and not self.tasks:
            raise ValueError("tasks and preset are missing: name at least one task of lm-evaluation-harness")
        if nameless := [
            task for task in self.tasks if isinstance(task, dict) and not isinstance(task.get("task"), str)
        ]:
            raise ValueError(f"tasks: {nameless[0]} does not say which; expected {{task: name, ...}}")
        return self


class BenchmarksConfig(Section):
    """Published benchmarks on which every policy is measured."""

    alpaca_eval: AlpacaEvalConfig | None = None
    """AlpacaEval; null: not measured."""
    mt_bench: MTBenchConfig | None = None
    """MT-Bench; null: not measured."""
    reward_bench: RewardBenchConfig | None = None
    """RewardBench of the annotator, once for all versions of the policy; null: not measured."""
    side_by_side: SideBySideConfig | None = None
    """Answers to novel instructions, beside each other; null: none."""
    lm_eval: HarnessConfig | None = None
    """Tasks of lm-evaluation-harness; null: not measured."""
    ifeval: IFEvalConfig | None = None
    """IFEval; null: not measured."""

    @property
    def room(self) -> int:
        """Tokens of the longest prompt and answer of the policy; 0 if no benchmark asks it."""
        asked = (self.alpaca_eval, self.mt_bench, self.ifeval, self.side_by_side)
        rooms = [section.max_prompt_tokens + section.max_new_tokens for section in asked if section]
        if self.lm_eval:
            rooms.append(self.lm_eval.max_length + 1)  # HFLM predicts one token more than it reads
        return max(rooms, default=0)
