"""The papers that a card cites, one declared entry each."""

from __future__ import annotations

from dataclasses import dataclass

from engine.algorithms import DPO, KTO, SPAC, SPIN, SPPO, SelfRewarding
from engine.algorithms.base import Algorithm
from engine.config.run import RunConfig
from engine.config.scorer import BlenderConfig, PairRMConfig


@dataclass(frozen=True)
class Paper:
    """A paper on arXiv."""

    key: str
    title: str
    authors: str
    """As BibTeX wants them."""
    arxiv: str

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"

    @property
    def bibtex(self) -> str:
        fields = {
            "title": f"{{{self.title}}}",
            "author": self.authors,
            "year": f"20{self.arxiv[:2]}",
            "eprint": self.arxiv,
            "archivePrefix": "arXiv",
        }
        return f"@misc{{{self.key},\n" + "".join(f"  {name} = {{{text}}},\n" for name, text in fields.items()) + "}"


OF_ALGORITHM: dict[type[Algorithm], Paper] = {
    SPPO: Paper(
        "wu2024sppo",
        "Self-Play Preference Optimization for Language Model Alignment",
        "Wu, Yue and Sun, Zhiqing and Yuan, Huizhuo and Ji, Kaixuan and Yang, Yiming and Gu, Quanquan",
        "2405.00675",
    ),
    DPO: Paper(
        "rafailov2023dpo",
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Ermon, Stefano and Manning, Christopher D. and "
        "Finn, Chelsea",
        "2305.18290",
    ),
    SelfRewarding: Paper(
        "yuan2024selfrewarding",
        "Self-Rewarding Language Models",
        "Yuan, Weizhe and Pang, Richard Yuanzhe and Cho, Kyunghyun and Li, Xian and Sukhbaatar, Sainbayar and Xu, Jing "
        "and Weston, Jason",
        "2401.10020",
    ),
    SPAC: Paper(
        "ji2024spac",
        "Self-Play with Adversarial Critic: Provable and Scalable Offline Alignment for Language Models",
        "Ji, Xiang and Kulkarni, Sanjeev and Wang, Mengdi and Xie, Tengyang",
        "2406.04274",
    ),
    SPIN: Paper(
        "chen2024spin",
        "Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models",
        "Chen, Zixiang and Deng, Yihe and Yuan, Huizhuo and Ji, Kaixuan and Gu, Quanquan",
        "2401.01335",
    ),
    KTO: Paper(
        "ethayarajh2024kto",
        "KTO: Model Alignment as Prospect Theoretic Optimization",
        "Ethayarajh, Kawin and Xu, Winnie and Muennighoff, Niklas and Jurafsky, Dan and Kiela, Douwe",
        "2402.01306",
    ),
}
PAIRRM = Paper(
    "jiang2023llmblender",
    "LLM-Blender: Ensembling Large Language Models with Pairwise Ranking and Generative Fusion",
    "Jiang, Dongfu and Ren, Xiang and Lin, Bill Yuchen",
    "2306.02561",
)
LORA = Paper(
    "hu2021lora",
    "LoRA: Low-Rank Adaptation of Large Language Models",
    "Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean and "
    "Wang, Lu and Chen, Weizhu",
    "2106.09685",
)


def papers_of(config: RunConfig) -> list[Paper]:
    """What the run builds on: the algorithm's paper first, then those of PairRM and LoRA if it used them."""
    papers = [OF_ALGORITHM[type(config.algorithm)]]
    papers += [PAIRRM] if isinstance(config.scorer, PairRMConfig | BlenderConfig) else []
    return papers + ([LORA] if config.learner.lora else [])
